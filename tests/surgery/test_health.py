"""``isometrize`` measures whether networks can learn, its advice works, and its defaults keep what must stay."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn

from isonet import SReLU, isometrize
from isonet.models import ResMultiplier
from isonet.surgery import DeadNetworkWarning, UnchangedNetworkWarning, measure_health
from isonet.surgery.running import ModelError, eight_images


@pytest.fixture(autouse=True)
def _no_denormals():
    """Flush denormal numbers to zero: a dead network computes with them, and they are slow."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])


def photos(size=32, n=8, seed=0):
    """Return images as smooth as photographs: enlarged noise."""
    noise = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size, mode="bilinear")


def small(name):
    """Return a small network of one of torchvision's families."""
    torch.manual_seed(0)
    mobile = zoo.efficientnet.MBConvConfig  # expansion, kernel, stride, input and output channels, layers
    inverted = [mobile(1, 3, 1, 16, 8, 1), mobile(6, 3, 2, 8, 12, 1), mobile(6, 5, 2, 12, 20, 1),
                mobile(6, 3, 2, 20, 40, 1), mobile(6, 5, 1, 40, 56, 1), mobile(6, 5, 2, 56, 96, 1)]  # fmt: skip
    blocks = [zoo.convnext.CNBlockConfig(48, 96, 1), zoo.convnext.CNBlockConfig(96, None, 1)]
    return {
        "resnet": lambda: zoo.ResNet(zoo.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5),
        "mobilenet_v3": lambda: zoo.mobilenet_v3_small(num_classes=5),
        "efficientnet": lambda: zoo.EfficientNet(inverted, 0.2, num_classes=5, last_channel=320),
        "convnext": lambda: zoo.ConvNeXt(blocks, num_classes=5),
        "vit": lambda: zoo.VisionTransformer(32, 8, 6, 4, 64, 256, num_classes=5),
        "swin": lambda: zoo.SwinTransformer([4, 4], 24, [1, 1], [2, 4], [7, 7], num_classes=5),
        "plain": lambda: plain(16, nn.SiLU),
    }[name]()


def plain(depth, act):
    """Return convolutions and activations without shortcuts or norms. SiLU halves the signal at each layer."""
    layers = [layer for _ in range(depth) for layer in (nn.Conv2d(16, 16, 3, padding=1), act())]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def learns(model, images, rates=(0.01, 0.1, 0.001)):
    """Return whether SGD halves the loss in 30 steps at one of the rates, as in benchmarks/isometrize.py."""
    for rate in rates:
        torch.manual_seed(0)
        probe = copy.deepcopy(model).train()
        optimizer, seen = torch.optim.SGD(probe.parameters(), rate, momentum=0.9), []
        for _ in range(30):
            loss = F.cross_entropy(probe(images), LABELS)
            seen.append(loss.item())
            if len(seen) > 3 and sum(seen[-3:]) / 3 < seen[0] / 2:
                return True
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
            optimizer.step()
    return False


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v3", "efficientnet", "convnext", "vit", "swin"])
def test_by_default_every_family_learns_without_a_warning(name):
    images = photos()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeadNetworkWarning)
        new, report = isometrize(small(name), images[:1])
    assert report.health.alive
    assert "can learn: sensitivity" in str(report)
    assert learns(new, images)
    if name in ("efficientnet", "convnext", "vit", "swin"):  # no activation is a ReLU, so nothing changes
        assert "no activation is SReLU" in str(report)
        assert all(torch.equal(a, b) for a, b in zip(new.parameters(), small(name).parameters(), strict=True))
        assert not report.initialised


@pytest.mark.parametrize(("name", "arguments"), [("mobilenet_v3", {"normalisation": False}), ("plain", {})])
def test_a_dead_network_gives_a_warning_whose_advice_works(name, arguments):
    images = photos()
    with pytest.warns(DeadNetworkWarning) as caught:
        dead, report = isometrize(small(name), images[:1], **arguments)
    assert caught[0].filename == __file__
    assert not report.health.alive
    assert not learns(dead, images, rates=(0.1,))
    assert "sensitivity" in report.health.reason
    new, report = isometrize(small(name), images[:1], **report.advised)
    assert report.health.alive
    assert learns(new, images)


def test_efficientnet_without_norms_is_dead_and_with_norms_and_delta_explodes():
    images = photos(n=1)
    with pytest.warns(DeadNetworkWarning, match=r"isometrize\(model, example\) gives"):
        _, report = isometrize(small("efficientnet"), images, normalisation=False)
    assert report.health.sensitivity < 1e-3
    with pytest.warns(DeadNetworkWarning, match="explode"):
        _, report = isometrize(small("efficientnet"), images, normalisation=True, delta=True)
    assert not report.health.alive
    assert report.advised == {}


def test_the_criterion_ignores_a_small_gradient_of_the_first_layer():
    images = photos(n=2)
    model = small("resnet")
    new, report = isometrize(model, images)
    for scale in (module for module in new.modules() if isinstance(module, ResMultiplier)):
        assert scale.scale == 0
    F.cross_entropy(new(images), LABELS[:2]).backward()
    F.cross_entropy(model(images), LABELS[:2]).backward()
    assert new.conv1.weight.grad.norm() < model.conv1.weight.grad.norm() / 20
    assert report.health.alive


def test_a_network_that_cannot_learn_with_any_arguments_is_refused():
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.head(1e-6 * F.relu(self.conv(x)).mean((2, 3)))

    with pytest.raises(ModelError, match=r"other arguments.*sensitivity.*check=False"):
        isometrize(Blind(), photos(n=1))
    _, report = isometrize(Blind(), photos(n=1), check=False)
    assert report.health is None
    assert "check=False" in str(report)


def test_measuring_changes_nothing_and_is_bit_equal_when_repeated():
    model = small("mobilenet_v3")  # with dropout and batch norms
    images = photos(n=3)
    before, kept = copy.deepcopy(model.state_dict()), images.clone()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = measure_health(model, images)
    with torch.no_grad():
        assert measure_health(model, images) == first
    isometrize(model, images)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(images, kept)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_sensitivity_is_the_norm_of_the_gradient_along_the_direction():
    """For a linear layer, g is X^t T for the weight. For the bias it is 0, the sum of the direction."""
    layer, x = nn.Linear(6, 3), torch.randn(8, 6)
    health = measure_health(layer, x)
    t = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    t -= t.mean(0)
    t /= t.norm()
    g = t.T @ x
    assert health.sensitivity == pytest.approx(g.norm().item(), rel=1e-5)
    assert health.change == pytest.approx(0.01 * (x @ g.T).norm().item(), rel=1e-3)
    assert health.contrast[""] == pytest.approx(layer(x).sub(layer(x).mean(0)).square().mean().sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("example", [torch.zeros(1, 3, 32, 32), torch.ones(9, 3, 32, 32), torch.randn(1, 3, 32, 32)])
def test_the_result_does_not_depend_on_the_values_of_the_example(example):
    _, report = isometrize(small("resnet"), example)
    assert report.health.alive


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 20), (2, 3, 20, 6), (2, 3, 9, 10, 11), (9, 3, 4, 4)])
def test_eight_images(shape):
    example = 5 + 2 * torch.randn(shape)
    images = eight_images(example)
    assert images.shape == (8, *shape[1:])
    assert torch.equal(images[: len(example)], example[:8])
    if len(example) < 8:
        assert torch.allclose(images[2:].mean(), example.mean(), atol=1e-4)
        assert torch.allclose(images[2:].std(unbiased=False), example.std(unbiased=False), atol=1e-4)


def test_a_network_that_cannot_be_measured_is_returned_with_the_reason():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).requires_grad_(False)
    _, report = isometrize(net, torch.randn(1, 3, 8, 8), srelu=False)
    assert report.health is None
    assert "no parameter" in str(report)


def test_norms_and_weights_stay_if_an_activation_that_stays_uses_them():
    def block(act):
        return nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), act

    net = nn.Sequential(
        *block(nn.ReLU()), *block(nn.Identity()), *block(nn.SiLU()), *block(nn.ReLU()), nn.BatchNorm2d(8), nn.Flatten(),
        nn.Linear(8 * 36, 5),
    )  # fmt: skip
    new, report = isometrize(net, torch.randn(2, 8, 6, 6))
    assert sorted(report.norms_removed) == ["1", "10"]
    assert sorted(report.initialised) == ["0", "9"]
    assert "used by 8" in report.left["4"]  # through a convolution and a norm
    assert "no activation" in report.left["12"]
    assert {name: why.split()[-1] for name, why in report.not_initialised.items()} == {"3": "4", "6": "7"}
    assert torch.equal(new[6].weight, net[6].weight)
    assert not report.biases_added

    _, report = isometrize(net, torch.randn(2, 8, 6, 6), also=(nn.SiLU,))
    assert len(report.norms_removed) == 5
    assert not report.left
    _, report = isometrize(net, torch.randn(2, 8, 6, 6), normalisation=True, delta=True, check=False)
    assert len(report.initialised) == 4
    assert not report.norms_removed


def test_attention_uses_a_norm_while_sums_and_gates_pass_it_on():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.gate = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Sigmoid()
            self.conv2, self.norm2, self.act = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
            self.norm3 = nn.GroupNorm(1, 4)

        def forward(self, x):
            y = self.norm(self.conv(x))
            y = self.act(y * self.gate(y) + x)
            y = self.act(self.norm2(self.conv2(y)) + y)
            y = self.norm3(y).flatten(2)
            return (y @ y.transpose(1, 2)).softmax(-1)

    _, report = isometrize(Gated(), torch.randn(2, 4, 6, 6), check=False)
    assert sorted(report.norms_removed) == ["norm", "norm2"]
    assert "softmax()" in report.left["norm3"]


class InPlace(nn.Module):
    """An activation, followed by a module or function that works in place."""

    def __init__(self, behind):
        super().__init__()
        self.conv, self.act, self.behind = nn.Conv2d(3, 4, 3), nn.ReLU6(inplace=True), behind
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.behind(self.act(self.conv(x))).mean((2, 3)))


class FunctionalDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training, inplace=True)


class DropPath(nn.Module):
    """Stochastic depth, in place and only in training, as it is often written."""

    def forward(self, x):
        return x.mul_(torch.rand(len(x), 1, 1, 1).round_()) if self.training else x


BEHIND = {
    "dropout": nn.Dropout(inplace=True),
    "dropout2d": nn.Dropout2d(inplace=True),
    "alpha dropout": nn.FeatureAlphaDropout(inplace=True),
    "silu": nn.SiLU(inplace=True),
    "elu": nn.ELU(inplace=True),
    "leaky relu": nn.LeakyReLU(inplace=True),
    "norm, hardswish": nn.Sequential(nn.BatchNorm2d(4), nn.Hardswish(inplace=True)),
}


@pytest.mark.parametrize("kind", BEHIND)
@pytest.mark.parametrize("normalisation", [None, False])
def test_gradients_equal_the_gradients_of_a_network_without_operations_in_place(kind, normalisation):
    torch.manual_seed(0)
    net, images = InPlace(copy.deepcopy(BEHIND[kind])), torch.randn(4, 3, 8, 8)
    new, report = isometrize(net.train(), images, normalisation=normalisation, delta=False)
    assert report.activations == {"act": "ReLU6"}
    assert new.training
    reference = copy.deepcopy(net)
    reference.act = SReLU(4)
    for module in reference.modules():
        module.inplace = False
    if normalisation is False and kind.startswith("norm"):
        reference.behind[0] = nn.Identity()
    for model in (new, reference):
        torch.manual_seed(1)
        model(images).square().sum().backward()
    assert new.conv.weight.grad.norm() > 0
    grads = {key: value.grad for key, value in reference.named_parameters()}
    assert grads.keys() == dict(new.named_parameters()).keys()
    for key, value in new.named_parameters():
        assert torch.equal(value.grad, grads[key]), key


@pytest.mark.parametrize("behind", [FunctionalDropout(), DropPath()])
def test_an_activation_stays_if_a_function_overwrites_its_output_in_training(behind):
    with pytest.warns(UnchangedNetworkWarning):
        new, report = isometrize(InPlace(behind), torch.randn(4, 3, 8, 8), delta=False)
    assert list(report.left) == ["act"]
    assert "written over" in report.left["act"]
    new(torch.randn(4, 3, 8, 8)).sum().backward()


def test_mobilenet_v3_with_hardswish_replaced_trains():
    images = photos(n=4)
    new, report = isometrize(small("mobilenet_v3"), images[:1], also=(nn.Hardswish,), normalisation=True, delta=False)
    assert new.training
    assert new.classifier[2].p == 0.2
    assert "classifier.1" in report.activations
    F.cross_entropy(new(images), LABELS[:4]).backward()
    assert all(parameter.grad is not None for parameter in new.parameters())


def test_a_network_in_which_nothing_is_replaced_still_works_in_place():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.SiLU(inplace=True))
    with pytest.warns(UnchangedNetworkWarning):
        new, report = isometrize(net, torch.randn(2, 3, 8, 8))
    assert new[2].inplace
    assert report.left["1"].startswith("BatchNorm2d: ")


def test_layers_that_run_only_in_training_are_recorded():
    """GoogLeNet's auxiliary heads, with ReLUs, norms and convolutions, are an example."""

    class Aux(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
            self.aux = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

        def forward(self, x):
            y = self.conv(x)
            return (self.head(y.mean((2, 3))), self.aux(y)) if self.training else self.head(y.mean((2, 3)))

    _, report = isometrize(Aux(), torch.randn(1, 3, 8, 8))
    assert list(report.activations) == ["aux.2"]
    assert list(report.norms_removed) == ["aux.1"]


@pytest.mark.parametrize("name", ["sequential", "own class", "graph module"])
def test_no_weight_decay_names_the_shifts_in_every_copy(name, tmp_path):
    net = {"sequential": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "own class": Listed(), "graph module": Calling()}
    new, report = isometrize(net[name], torch.randn(2, 3, 8, 8))
    assert (type(new) is type(net[name])) == (name != "graph module")
    expected = {f"{key}.srelu_bias" for key in report.activations} | ({"conv.weight"} if name == "own class" else set())
    assert len(report.activations) == 1 + (name == "graph module")
    torch.save(new, tmp_path / "net.pt")
    copies = [copy.deepcopy(new), pickle.loads(pickle.dumps(new)), torch.load(tmp_path / "net.pt", weights_only=False)]
    copies += [copy.deepcopy(copies[1]), pickle.loads(pickle.dumps(copies[0]))]
    for each in (new, *copies):
        assert each.no_weight_decay() == expected
        assert expected <= dict(each.named_parameters()).keys()
        assert torch.equal(each(torch.ones(1, 3, 8, 8)), new(torch.ones(1, 3, 8, 8)))
    assert not any("no_weight_decay" in key for key in new.state_dict())
    images = torch.ones(1, 3, 8, 8)
    assert torch.equal(torch.export.export(new, (images,)).module()(images), new(images))
    if name != "own class":
        assert not hasattr(net[name], "no_weight_decay")


def test_timm_applies_no_weight_decay_to_the_shifts():
    factory = pytest.importorskip("timm.optim")
    new, report = isometrize(small("resnet"), photos(n=1))
    optimizer = factory.create_optimizer_v2(new, opt="sgd", lr=0.1, weight_decay=0.01)
    names = {id(value): key for key, value in new.named_parameters()}
    decayed = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decayed[f"{key}.srelu_bias"] for key in report.activations} == {0.0}
    assert decayed["conv1.weight"] == 0.01


class Listed(nn.Module):
    """A network that already lists parameters without weight decay."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, x):
        return self.act(self.conv(x))

    def no_weight_decay(self):
        return ["conv.weight"]


class Calling(nn.Module):
    """A network that ``isometrize`` rewires as a whole."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv(F.relu(self.conv(x))))


class UNet(nn.Module):
    """A small U-Net with batch norms. Its outputs have the size of the images."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(11, 2, 1)

    def forward(self, x):
        return self.head(torch.cat([self.up(self.down(x)), x], 1))


def test_a_u_net_with_transposed_convolutions():
    new, report = isometrize(UNet(), torch.randn(1, 3, 16, 16))
    assert report.initialised == ["down.0", "up.0", "head"]
    assert report.penalised == ["up.0", "head"]
    assert not report.biases_added
    assert report.health.alive
    assert torch.equal(new.up[0].weight[:, :, 1, 1], torch.eye(8))
    new(torch.randn(2, 3, 16, 16)).sum().backward()


@pytest.mark.parametrize("skip", [["layer1", "layer2.0.bn1"], lambda name, module: name in ("layer1", "layer2.0.bn1")])
def test_skipped_modules_and_their_submodules_do_not_change(skip):
    model = small("resnet")
    with torch.no_grad():
        model.layer1[0].conv1.weight.normal_()
    new, report = isometrize(model, photos(n=1), skip=skip)
    assert list(report.left) == ["layer1", "layer2.0.bn1"]
    assert all("skipped" in why for why in report.left.values())
    assert str(new.layer1) == str(model.layer1)
    assert all(
        torch.equal(new.state_dict()[key], value) for key, value in model.state_dict().items() if "layer1" in key
    )
    mentioned = {*report.activations, *report.norms_removed, *report.initialised, *report.not_initialised}
    mentioned |= {*report.penalised, *report.not_penalised, *report.multipliers, *report.rewired}
    assert not [name for name in mentioned if name.startswith("layer1") or name == "layer2.0.bn1"]
    assert "layer2.0.conv1" in report.not_initialised  # its output is the input of a norm that stays
    assert report.multipliers == [f"layer{i}.0.multiplier" for i in (2, 3, 4)]
    assert new.layer1[0].relu.inplace
    new(photos(n=2)).sum().backward()


def test_skip_refuses_unknown_names_and_accepts_parametrised_layers():
    with pytest.raises(ValueError, match=r"layer.*layer4"):
        isometrize(small("resnet"), photos(n=1), skip=["layer"])
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 4, 3))
    _, report = isometrize(net, torch.randn(1, 3, 8, 8), skip="0")
    assert report.initialised == ["2"]
    assert list(report.activations) == ["1"]
    with pytest.warns(DeadNetworkWarning, match=r"skip=\('0',\).* gives"):
        isometrize(small("plain"), photos(n=1), skip="0")


def test_the_activation_before_a_skipped_module_in_place_stays():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Dropout(inplace=True), nn.Conv2d(4, 4, 3))
    with pytest.warns(UnchangedNetworkWarning):
        new, report = isometrize(net, torch.randn(2, 3, 8, 8), skip=["2"])
    assert "written over" in report.left["1"]
    assert new[2].inplace
    new(torch.randn(2, 3, 8, 8)).sum().backward()


def test_an_unchanged_network_gives_a_warning_with_arguments_that_change_it():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.LazyLinear(5))
    net(torch.randn(2, 3, 8, 8))
    with pytest.warns(UnchangedNetworkWarning, match=r"nothing.*also=\(nn.GELU,\)"):
        new, report = isometrize(net, torch.randn(8, 3, 8, 8))
    assert report.unchanged
    for name, value in net.state_dict().items():
        assert torch.equal(new.state_dict()[name], value), name
