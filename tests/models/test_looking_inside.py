"""Hooks, feature extractors and optimizer factories work with the networks as their formulas suggest."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import isonet
from isonet import SReLU
from isonet.hooks import hooked
from isonet.training.devices import place

FAMILIES = {
    "ISONet": lambda: isonet.cifar_isonet(8),
    "R-ISONet": lambda: isonet.cifar_isonet(8, shortcuts=True),
    "ISONet-50": lambda: isonet.isonet50(num_classes=5),
    "ResNet": lambda: isonet.build_model(
        isonet.load_cfg("configs/cifar10_RES56.yaml", ["ISON.DEPTH", 8, "DATASET.NUM_CLASSES", 5])
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def images(family: str) -> torch.Tensor:
    size = 64 if family == "ISONet-50" else 16
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@every_family
def test_the_output_that_a_hook_receives_is_not_overwritten(family):
    """The output equals a second computation from the input that the hook received."""
    net, seen = FAMILIES[family](), []
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | SReLU | nn.ReLU)]
    with hooked(m.register_forward_hook(lambda m, inputs, output: seen.append((m, inputs[0], output))) for m in layers):
        net(images(family))
    assert len(seen) > 10
    for module, given, output in seen:
        assert torch.equal(module(given), output)


@every_family
def test_a_feature_extractor_separates_a_convolution_from_its_activation(family):
    net = FAMILIES[family]()
    nodes = {"stem.conv": "conv", "stem.relu": "act", "s1.b1.relu": "block"}
    actual = create_feature_extractor(net, nodes)(images(family))
    conv = net.stem.conv(images(family))
    assert torch.equal(actual["conv"], conv)
    assert torch.equal(actual["act"], net.stem.relu(net.stem.bn(conv)))
    assert not torch.equal(actual["conv"], actual["act"])


@every_family
def test_full_backward_hooks_on_every_layer(family):
    """Each hook receives autograd's gradient with respect to its layer's output."""
    net, seen, outputs = FAMILIES[family]().eval(), {}, {}

    def keep(name, output):
        output.retain_grad()
        outputs[name] = output

    for name, module in net.named_modules():
        module.register_full_backward_hook(lambda m, inputs, grads, name=name: seen.update({name: grads[0]}))
        module.register_forward_hook(lambda m, inputs, output, name=name: keep(name, output))
    F.cross_entropy(net(images(family)), torch.arange(2)).backward()
    assert set(seen) == {name for name, _ in net.named_modules()}
    for name, output in outputs.items():
        torch.testing.assert_close(seen[name], output.grad, msg=name)


@every_family
def test_training_scripts_work_in_place_with_equal_results(family):
    plain, fast = FAMILIES[family](), FAMILIES[family]()
    fast.load_state_dict(plain.state_dict())
    place(fast, [torch.device("cpu")])
    assert all(m.inplace for m in fast.modules() if isinstance(m, SReLU | nn.ReLU))
    assert not any(m.inplace for m in plain.modules() if isinstance(m, SReLU | nn.ReLU))
    actual = []
    for net in (plain, fast):
        net.eval()  # disables dropout
        F.cross_entropy(net(images(family)), torch.arange(2)).backward()
        actual.append([parameter.grad for parameter in net.parameters()])
    for a, b in zip(*actual, strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(plain(images(family)), fast(images(family)))


@pytest.mark.parametrize("family", ["ISONet", "R-ISONet", "ISONet-50"])
def test_timms_optimizer_factory_does_not_decay_the_shifts(family):
    timm_optim = pytest.importorskip("timm.optim", reason="needs timm")
    net = FAMILIES[family]()
    groups = timm_optim.param_groups_weight_decay(net, 0.1, no_weight_decay_list=net.no_weight_decay())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    optimizer = timm_optim.create_optimizer_v2(net, opt="sgd", lr=0.1, weight_decay=0.1)
    decayed |= {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    shifts = {name: p for name, p in net.named_parameters() if "srelu" in name}
    assert net.no_weight_decay() == set(shifts)
    assert shifts
    assert not decayed & {id(p) for p in shifts.values()}
    assert id(net.stem.conv.weight) in decayed
