"""``isometrize`` with networks of torchvision, and with small networks that are easy to get wrong."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from isonet import OrthoPenalty, SReLU, delta_init_, isometrize, ortho_penalty
from isonet.isometry import signal_norms
from isonet.models import ResMultiplier
from isonet.surgery import ModelError, UnchangedNetworkWarning
from isonet.surgery.replacing import Copied
from isonet.surgery.running import same


@pytest.fixture(autouse=True)
def _no_denormals():
    """Flush denormal numbers to zero: fading signals and gradients become denormal, and they are slow."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


# torchvision's name: the numbers of activations, norms, residual blocks and convolutions
EXPECTED = {
    "resnet18": (17, 20, 8, 20),
    "resnet50": (49, 53, 16, 53),
    "vgg11": (9, 0, 0, 8),
    "vgg11_bn": (9, 8, 0, 8),
    "mobilenet_v2": (35, 52, 10, 52),
}
NETS = list(EXPECTED)
ACTIVATIONS = {"relu", "relu_", "hardtanh", "hardtanh_", "clamp_min", "clamp"}


class Count(TorchDispatchMode):
    """Counts the activations among the executed operators."""

    def __init__(self):
        super().__init__()
        self.activations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.activations += func.overloadpacket.__name__ in ACTIVATIONS
        return func(*args, **(kwargs or {}))


def relus(model, images):
    with Count() as count, torch.no_grad():
        copy.deepcopy(model).eval()(images)
    return count.activations


def network(name):
    """Return the network as torch initialises it. VGG has a small head instead of its 120 million weights."""
    torch.manual_seed(0)
    if not name.startswith("vgg"):
        return getattr(zoo, name)(num_classes=10)
    with torch.device("meta"):
        model = getattr(zoo, name)(init_weights=False)
        model.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def batch(n=4, size=32):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, size, size, generator=rng), torch.randint(10, (n,), generator=rng)


@functools.cache
def changed(name):
    """Return the network, its isometric copy and the report. Tests must not modify them."""
    model = network(name)
    return model, *isometrize(model, batch(1)[0])


def trainable(name):
    return copy.deepcopy(changed(name)[1]).train()


@pytest.mark.parametrize("name", NETS)
def test_every_activation_becomes_a_separate_srelu_and_every_norm_is_removed(name):
    model, new, report = changed(name)
    activations, norms, branches, _ = EXPECTED[name]
    images, _ = batch(1)
    assert relus(model, images) == activations == len(report.activations)
    assert relus(new, images) == 0
    assert {name for name, module in new.named_modules() if isinstance(module, SReLU)} == set(report.activations)
    assert not any(isinstance(m, (nn.ReLU, nn.ReLU6, nn.BatchNorm2d)) for m in new.modules())
    assert len(report.norms_removed) == norms
    assert report.multipliers == [name for name, m in new.named_modules() if isinstance(m, ResMultiplier)]
    assert len(report.multipliers) == branches
    assert not report.left
    assert not report.biases_added
    assert all(count in str(report) for count in (f"{activations} activations", f"{norms} norms removed"))


@pytest.mark.parametrize("name", NETS)
def test_convolutions_equal_delta_init_and_their_penalty_is_0(name):
    model, new, report = changed(name)
    expected = dict(delta_init_(copy.deepcopy(model)).named_modules())
    convs = {name: conv for name, conv in new.named_modules() if isinstance(conv, nn.Conv2d)}
    assert len(convs) == EXPECTED[name][3]
    for key, conv in convs.items():
        assert torch.equal(conv.weight, expected[key].weight), key
    assert {*report.initialised, *report.not_initialised} == set(convs)
    assert list(report.not_initialised) == (["conv1"] if name.startswith("resnet") else [])
    assert all("7x7" in why for why in report.not_initialised.values())
    assert report.penalised == OrthoPenalty(new).names
    assert {*report.penalised, *report.not_penalised} == set(convs)
    assert len(report.not_penalised) == 1  # the first convolution, whose inputs are the images
    assert ortho_penalty(new).item() == 0


@pytest.mark.parametrize("name", NETS)
def test_names_and_the_original_network_do_not_change(name):
    model, new, _ = changed(name)
    again = network(name)
    assert list(model.state_dict()) == list(again.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    norms = [f"{key}." for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    kept = {key for key in model.state_dict() if not key.startswith(tuple(norms))}
    added = set(new.state_dict()) - kept
    assert kept <= set(new.state_dict())
    assert {key.rpartition(".")[2] for key in added} <= {"srelu_bias", "scale"}
    assert type(new) is type(model)
    assert new.training


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11_bn", "mobilenet_v2"])  # vgg11 ends up as vgg11_bn
def test_a_gradient_reaches_the_first_convolution_and_steps_lower_the_loss(name):
    model = trainable(name)
    images, labels = batch(2)
    penalty = OrthoPenalty(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3 if name.startswith("vgg") else 1e-2)

    losses = []
    for _ in range(2 if name == "resnet50" else 4):
        torch.manual_seed(0)  # the same dropout in each step
        loss = F.cross_entropy(model(images), labels) + 1e-4 * penalty()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        assert next(m for m in model.modules() if isinstance(m, nn.Conv2d)).weight.grad.norm() > 0
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_copies_pickles_and_state_dictionaries_compute_the_same(name):
    new = trainable(name)
    with torch.no_grad():
        for number, parameter in enumerate(new.parameters()):  # so that a missing parameter changes the outputs
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    images, _ = batch(1)
    other, _ = isometrize(network(name), images)
    other.load_state_dict(new.state_dict())
    same = [copy.deepcopy(new), pickle.loads(pickle.dumps(new)), other]
    with torch.no_grad():
        expected = new.eval()(images)
        assert all(torch.equal(model.eval()(images), expected) for model in same)
        assert [list(model.state_dict()) for model in same] == [list(new.state_dict())] * 3


def test_torch_compile_produces_one_graph():
    net = zoo.ResNet(zoo.resnet.Bottleneck, [1, 1, 0, 0], num_classes=3)
    net.layer3, net.layer4, net.fc = nn.Identity(), nn.Identity(), nn.Linear(512, 3)
    images, _ = batch(2, 32)
    new, _ = isometrize(net, images, multiplier=0.5)
    compiled = torch.compile(new, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), new(images))


def test_rewiring_alone_does_not_change_the_outputs():
    model = network("resnet50").eval()
    new, report = isometrize(model, batch(1)[0], normalisation=True, srelu=False, delta=False, multiplier=1.0)
    images, _ = batch(2)
    assert torch.equal(new(images), model(images))
    assert len(report.multipliers) == 16
    assert all(why.startswith("ReLU: ") for why in report.left.values())
    assert not report.initialised
    assert not new.training


def test_a_bottleneck_computes_the_formula():
    """Each call has separate shifts, and the branch has a multiplier. The expected result uses plain functions."""
    block = zoo.resnet.Bottleneck(8, 4, stride=2, downsample=nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False)))
    images = torch.randn(2, 8, 6, 6)
    new, report = isometrize(block, images, delta=False)
    assert report.rewired == [""]
    values = dict(new.named_parameters())
    for number, value in enumerate(values.values()):
        nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(number))
    x = F.conv2d(images, values["conv1.weight"]).maximum(values["relu.srelu_bias"])
    x = F.conv2d(x, values["conv2.weight"], stride=2, padding=1).maximum(values["relu_2.srelu_bias"])
    x = F.conv2d(x, values["conv3.weight"]) * values["multiplier.scale"]
    x = (x + F.conv2d(images, values["downsample.0.weight"], stride=2)).maximum(values["relu_3.srelu_bias"])
    torch.testing.assert_close(new(images), x)
    assert [values[f"{name}.srelu_bias"].shape[1] for name in ("relu", "relu_2", "relu_3")] == [4, 4, 16]


def test_the_signal_keeps_its_length_where_it_faded_before():
    """Compare VGG-11 as torch initialises it with its isometric copy, from one activation to the next."""
    model = network("vgg11")
    images, labels = batch(2)
    before = [layer.forward for layer in signal_norms(model, images, labels)][:8]  # only the convolutions
    new, _ = isometrize(model, images)
    after = [layer.forward for layer in signal_norms(new, images, labels)][:8]
    assert before[-1] < before[0] / 100
    ratios = [b / a for a, b in itertools.pairwise(after)]
    assert all(1 / 3 < ratio < 3 for ratio in ratios)
    assert after[-1] > after[0] / 10


class Careless(nn.Module):
    """Activations in place and a norm whose inputs are used again, a function, and a module with two names."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        act = nn.ReLU(inplace=True)
        self.chain = nn.Sequential(nn.Conv2d(4, 6, 1), act, nn.Conv2d(6, 6, 1), act)

    def forward(self, x):
        x = self.conv(x)
        y = F.relu(self.norm(x), inplace=True)
        z = F.relu(self.second(y), inplace=True)
        return self.chain(x + y) + torch.relu(self.chain[0](z))


@pytest.mark.parametrize("gradients", [False, True])
def test_no_module_overwrites_an_input_that_is_used_again(gradients):
    images = torch.randn(2, 3, 8, 8)
    new, report = isometrize(Careless(), images, delta=False)
    v = dict(new.named_parameters())
    assert sorted(key for key in v if "bias" in key and "srelu" in key) == [
        "chain.1.srelu_bias", "chain.3.srelu_bias", "relu.srelu_bias", "relu_2.srelu_bias", "relu_3.srelu_bias",
    ]  # fmt: skip
    assert len(report.activations) == 5

    def conv(x, name):
        return F.conv2d(x, v[f"{name}.weight"], v[f"{name}.bias"])

    x = conv(images, "conv")
    y = x.maximum(v["relu.srelu_bias"])
    z = conv(y, "second").maximum(v["relu_2.srelu_bias"])
    end = conv(conv(x + y, "chain.0").maximum(v["chain.1.srelu_bias"]), "chain.2").maximum(v["chain.3.srelu_bias"])
    expected = end + conv(z, "chain.0").maximum(v["relu_3.srelu_bias"])
    with torch.set_grad_enabled(gradients):
        found = new(images)
    torch.testing.assert_close(found, expected)
    if gradients:
        found.sum().backward()
    assert not any(getattr(module, "inplace", False) for module in new.modules())


class Branching(nn.Module):
    """A module whose forward depends on the data, so ``torch.fx`` cannot trace it."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.once = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.conv(x)
        if x.sum() > 1e9:
            return x
        return self.once(F.relu(x)) + self.act(x) + self.act(x[:, :2]).sum()


def test_calls_that_torch_fx_cannot_separate_are_left_unchanged_and_reported():
    new, report = isometrize(Branching(), torch.randn(1, 3, 8, 8))
    assert isinstance(new.once, SReLU)
    assert isinstance(new.act, nn.ReLU)
    assert list(report.activations) == ["once"]
    assert "2 and 4 channels" in report.left["act"]
    assert all("torch.fx" in report.left[name] for name in ("act", ""))
    assert "act (ReLU: " in str(report)


def test_a_forward_that_differs_in_training_is_not_rewired():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return F.dropout(F.relu(self.conv(x)), 0.5, self.training)

    with pytest.warns(UnchangedNetworkWarning):
        new, report = isometrize(Noisy(), torch.randn(1, 3, 8, 8))
    assert type(new) is Noisy
    assert "training" in report.left[""]


def test_convnext_keeps_its_gelus_by_default_and_its_layer_scales():
    blocks = [zoo.convnext.CNBlockConfig(96, 192, 1), zoo.convnext.CNBlockConfig(192, None, 1)]
    model = zoo.ConvNeXt(blocks, num_classes=10)
    images, labels = batch(2)
    new, report = isometrize(model, images, normalisation=False)
    assert len(report.norms_removed) == sum(isinstance(module, nn.LayerNorm) for module in model.modules()) == 5
    assert not report.activations
    assert sum(why.startswith("GELU: ") for why in report.left.values()) == 2
    assert sum("layer_scale" in why for why in report.left.values()) == 2

    new, report = isometrize(model, images, also=(nn.GELU,))
    assert len(report.activations) == 2
    assert new.features[1][0].block[4].srelu_bias.shape == (1, 384, 1, 1)  # for inputs of shape (N, H, W, C)
    F.cross_entropy(new(images), labels).backward()
    assert next(new.parameters()).grad.norm() > 0


@pytest.mark.parametrize("srelu", [False, True])
def test_a_convolution_receives_a_bias_if_no_srelu_follows(srelu):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.SiLU(),
        nn.Flatten(), nn.LazyLinear(5, bias=False), nn.BatchNorm1d(5),
    )  # fmt: skip
    net.eval()(torch.randn(2, 3, 8, 8))
    new, report = isometrize(net, torch.randn(2, 3, 8, 8), normalisation=False, srelu=srelu)
    assert report.biases_added == (["3"] if srelu else ["0", "3"])
    assert torch.equal(new[3].bias, torch.zeros(4))
    assert report.left["8"].startswith("BatchNorm1d: ")


class Adding(nn.Module):
    """Adds in place to the output of a norm, or of an activation that needs no output in the backward pass."""

    def __init__(self, act, norm):
        super().__init__()
        self.conv, self.act, self.norm = nn.Conv2d(4, 4, 3, padding=1), act, norm

    def forward(self, x):
        y = self.norm(self.act(self.conv(x)))
        y += x
        return y


@pytest.mark.parametrize(
    ("act", "norm"),
    [
        (nn.ReLU(), nn.BatchNorm2d(4)),
        (nn.ReLU(), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout())),
        (nn.ReLU6(), nn.Identity()),
    ],
)
def test_a_sum_in_place_after_a_removed_norm_does_not_break_the_gradient(act, norm):
    images = torch.randn(2, 4, 6, 6)
    new, report = isometrize(Adding(act, norm), images, delta=False, multiplier=None)
    new(images).sum().backward()
    assert new.conv.weight.grad.norm() > 0
    with torch.no_grad():
        torch.testing.assert_close(new.eval()(images), new.act(new.conv(images)) + images)
    if isinstance(act, nn.ReLU):
        assert list(report.activations) == ["act"]
        assert sum(isinstance(module, Copied) for module in new.modules()) == len(report.norms_removed) == 1
    else:
        assert list(report.left) == ["act"]
        assert "written over" in report.left["act"]


def test_an_activation_in_place_after_a_removed_norm_does_not_break_the_gradient():
    images = torch.randn(2, 3, 6, 6)
    convs = [nn.Conv2d(3, 3, 1) for _ in range(2)]
    net = nn.Sequential(convs[0], nn.ReLU(), nn.BatchNorm2d(3), nn.SiLU(inplace=True), convs[1])
    new, _ = isometrize(net, images, delta=False)
    new(images).sum().backward()
    assert new[0].weight.grad.norm() > 0
    assert not any(parameter.grad is not None for parameter in net.parameters())


def test_after_a_linear_layer_and_its_norm_channels_are_the_last_dimension():
    net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Identity(), nn.Dropout(), nn.ReLU())
    for normalisation in (False, True):
        new, report = isometrize(net, torch.randn(2, 25, 8), normalisation=normalisation)
        assert list(report.activations) == ["4"]
        assert new[4].srelu_bias.shape[1] == 16
        assert new(torch.randn(2, 9, 8)).shape == (2, 9, 16)


class Sloped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.f = nn.Conv2d(3, 4, 3), 2.0

    def forward(self, x):
        x = F.gelu(F.leaky_relu(self.conv(x), 0.2), approximate="tanh")
        return F.elu(F.leaky_relu(input=x, negative_slope=0.3, inplace=True), 1.5)


def test_activation_functions_keep_their_arguments():
    also = (nn.LeakyReLU, nn.GELU, nn.ELU)
    _, report = isometrize(Sloped(), torch.randn(1, 3, 6, 6), also=also)
    assert sorted(report.activations) == ["elu", "gelu", "leakyrelu", "leakyrelu_2"]
    assert not report.left


def test_a_function_with_a_computed_argument_is_left_unchanged():
    class Computed(Sloped):
        def forward(self, x):
            return F.leaky_relu(self.conv(x), x.shape[1] / 10)

    with pytest.warns(UnchangedNetworkWarning):
        _, report = isometrize(Computed(), torch.randn(1, 3, 6, 6), also=(nn.LeakyReLU,))
    assert list(report.left) == [""]
    assert "LeakyReLU" in report.left[""]


def test_copies_of_a_rewired_module_keep_its_plain_attributes():
    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = Sloped()

        def forward(self, x):
            return self.b(x) * self.b.f

    images = torch.randn(1, 3, 6, 6)
    new, report = isometrize(Parent(), images, also=(nn.LeakyReLU,))
    assert "b" in report.rewired
    for each in (copy.deepcopy(new), copy.deepcopy(copy.deepcopy(new)), pickle.loads(pickle.dumps(new.b))):
        assert getattr(each, "b", each).f == 2.0
    torch.testing.assert_close(new(images), 2 * new.b(images))


def test_results_of_any_type_are_compared():
    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return {"y": F.relu(self.conv(x)), "kind": "a", "more": (None, [1, float("nan")])}

    new, report = isometrize(Labelled(), torch.randn(1, 3, 6, 6))
    assert new(torch.randn(1, 3, 6, 6))["kind"] == "a"
    assert len(report.activations) == 1

    @dataclasses.dataclass
    class Result:
        y: torch.Tensor
        kind: str

    x = torch.zeros(2)
    assert same(Result(x, "a"), Result(x.clone(), "a"))
    for other in (Result(x + 1, "a"), Result(x, "b"), {"y": x}, x, "a", None):
        assert not same(Result(x, "a"), other)
    assert not same({"y": x, "kind": "a"}, {"y": x, "kind": "b"})
    assert not same([x], [x, x])


def test_a_network_that_does_not_run_and_parametrised_layers_are_refused():
    with pytest.raises(ModelError, match=r"\(1, 4, 8, 8\)"):
        isometrize(nn.Conv2d(3, 4, 3), torch.randn(1, 4, 8, 8))
    for normed in (nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm):
        net = nn.Sequential(normed(nn.Conv2d(4, 4, 3)), nn.ReLU())
        with pytest.raises(ValueError, match=r"^0 .*parametrised"):
            isometrize(net, torch.randn(1, 4, 8, 8))


def test_a_sequential_with_hooks_and_a_subclass_of_relu():
    class Rectifier(nn.ReLU):
        pass

    net = nn.Sequential(nn.Conv2d(4, 4, 3), Rectifier(), nn.Conv2d(4, 4, 1), nn.ReLU())
    calls = []
    net.register_forward_hook(lambda module, inputs, output: calls.append(module))
    new, report = isometrize(net, torch.randn(2, 4, 8, 8))
    assert report.activations == {"1": "Rectifier", "3": "ReLU"}
    assert not report.left
    new(torch.randn(2, 4, 8, 8))
    assert calls[-1] is new


def test_a_network_that_refuses_hooks_is_refused():
    class Scripted(nn.ReLU):
        def register_forward_pre_hook(self, *args, **kwargs):
            raise RuntimeError("hooks are not supported on scripted modules")

    with pytest.raises(ModelError, match="hooks"):
        isometrize(nn.Sequential(nn.Conv2d(3, 4, 3), Scripted()), torch.randn(2, 3, 8, 8))
