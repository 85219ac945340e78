"""Networks by name: the networks of the configs, the authors' weights, torch.hub, stage features, and a detector."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

import isonet
from conftest import REPO
from isonet import build_model, load_cfg
from isonet.errors import CheckpointError, ConfigError, UserError
from isonet.files.zoo import zoo_file
from isonet.published import ZOO

IMAGENET = {
    f"{'r_' * residual}isonet{depth}": f"IN1k-{'R' * residual}ISO{depth}"
    for residual in (False, True)
    for depth in (18, 34, 50, 101)
}
CIFAR = {
    "cifar10_ISO56": {"depth": 56},
    "cifar100_ISO29": {"depth": 29, "num_classes": 100, "bottleneck": True},
    "cifar10_RISO56": {"depth": 56, "shortcuts": True},
}


@pytest.mark.parametrize(
    ("builder", "arguments", "config"),
    [
        *((builder, {}, config) for builder, config in IMAGENET.items()),
        *(("cifar_isonet", arguments, config) for config, arguments in CIFAR.items()),
    ],
)
def test_a_builder_builds_the_network_of_its_config(builder, arguments, config):
    large = builder.endswith(("34", "101"))  # slow to initialise, so only shapes are compared
    with torch.device("meta" if large else "cpu"):
        torch.manual_seed(3)
        ours = getattr(isonet, builder)(**arguments)
        torch.manual_seed(3)
        theirs = build_model(load_cfg(REPO / f"configs/{config}.yaml"))
    assert repr(ours) == repr(theirs)  # including the dropout rates
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert a.shape == b.shape, name
        assert large or torch.equal(a, b), name


def test_arguments_change_what_they_name():
    model = isonet.isonet18(num_classes=7, dropout=0.0)
    assert model.head.fc.weight.shape == (7, 512)
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    assert isonet.r_isonet18(dropout=0.25).head.dropout.p == 0.25


@pytest.mark.parametrize(
    ("builder", "arguments", "words"),
    [
        ("cifar_isonet", {"depth": 57}, "57 .*6n\\+2 .* 56 and 62"),
        ("cifar_isonet", {"depth": 32, "bottleneck": True}, "32 .*9n\\+2 .* 29 and 38"),
        ("cifar_isonet", {"depth": 2}, "6n\\+2"),
        ("isonet18", {"num_classes": 0}, "num_classes must be 1 or more"),
        ("isonet18", {"dropout": 1.0}, "below 1"),
        ("isonet18", {"pretrained": "IN1k-RISO18"}, "R-ISONet-18, not ISONet-18"),
    ],
)
def test_a_mistake_is_explained(builder, arguments, words):
    with pytest.raises(ConfigError, match=words):
        getattr(isonet, builder)(**arguments)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A hub cache with a file of R-ISONet-18 in the authors' format: random weights, and DataParallel's names."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(5)
    weights = {name: torch.randn_like(value) for name, value in isonet.r_isonet18().state_dict().items()}
    path = zoo_file(ZOO["IN1k-RISO18"])
    path.parent.mkdir(parents=True)
    assert tmp_path in path.parents
    torch.save({"net": {f"module.{name}": value for name, value in weights.items()}, "epoch": 100}, path)
    return path, weights


def test_pretrained_weights_and_a_fresh_head(cached):
    path, weights = cached
    model = isonet.r_isonet18(pretrained=True)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())

    torch.manual_seed(6)
    other = isonet.r_isonet18(num_classes=37, pretrained=True).state_dict()
    torch.manual_seed(6)
    fresh = isonet.r_isonet18(num_classes=37).state_dict()
    for name, value in other.items():
        assert torch.equal(value, fresh[name] if name.startswith("head.") else weights[name]), name

    shutil.copy(path, zoo_file(ZOO["IN1k-ISO18"]))
    with pytest.raises(CheckpointError, match=r"belongs to another network .* remove the file"):
        isonet.isonet18(pretrained=True)
    with pytest.raises(UserError, match="did you mean zoo:IN1k-RISO18"):
        isonet.r_isonet18(pretrained="IN1k-RISO18-dropout")


def test_a_file_gives_the_weights(cached, tmp_path, caplog):
    path, weights = cached
    model = isonet.r_isonet18(pretrained=str(path))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not caplog.records
    small = isonet.r_isonet18(num_classes=5, pretrained=str(path)).state_dict()
    assert all(torch.equal(small[name], value) for name, value in weights.items() if not name.startswith("head."))
    assert "number of classes" in caplog.records[0].getMessage()

    mine = isonet.cifar_isonet(8)
    torch.save(mine.state_dict(), tmp_path / "best.pt")
    for name in (tmp_path / "best.pt", tmp_path):  # a file and a run folder
        loaded = isonet.cifar_isonet(8, pretrained=str(name)).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in mine.state_dict().items())
    with pytest.raises(CheckpointError, match=r"no checkpoint .*gone\.pt"):
        isonet.isonet18(pretrained=str(tmp_path / "gone.pt"))
    with pytest.raises(CheckpointError, match="another network"):
        isonet.isonet18(pretrained=str(path))


HUB = """
import sys, torch
folder = sys.argv[1]
model = torch.hub.load(folder, "r_isonet18", source="local", pretrained=True, num_classes=5)
import isonet
assert isonet.__file__.startswith(folder), isonet.__file__
assert "gdown" not in sys.modules and "torchvision" not in sys.modules
print(float(model.stem.conv.weight.double().sum()), tuple(model.head.fc.weight.shape))
"""


def test_torch_hub_builds_from_a_checkout(tmp_path, cached):
    shutil.copytree(REPO / "isonet", tmp_path / "checkout/isonet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "hubconf.py", tmp_path / "checkout")
    command = [sys.executable, "-c", HUB, str(tmp_path / "checkout")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{float(cached[1]['stem.conv.weight'].double().sum())} (5, 512)\n"


def test_every_builder_is_exported_documented_and_an_entry_point_of_torch_hub():
    import hubconf

    assert {"cifar_isonet", *IMAGENET} <= set(isonet.__all__)
    for name in ("cifar_isonet", *IMAGENET):
        assert getattr(hubconf, name) is getattr(isonet, name)
        assert "ISONet" in inspect.getdoc(getattr(isonet, name))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", ["isonet18", "r_isonet18", "cifar ISONet", "cifar R-ISONet", "ResNet"])
def test_extracted_features_equal_the_outputs_of_the_stages(family, training):
    """Compare torchvision's extractor, which uses torch.fx, with the modules called in order, including gradients."""
    torch.manual_seed(7)
    cifar = family.startswith("cifar")
    if family == "ResNet":
        model = build_model(load_cfg(REPO / "configs/IN1k-RES18.yaml"))
    elif cifar:
        model = isonet.cifar_isonet(20, shortcuts="R-" in family, bottleneck=True)
    else:
        model = getattr(isonet, family)()
    for name, parameter in model.named_parameters():
        if "shared_scalar" in name:  # otherwise the branches of R-ISONet are 0
            nn.init.constant_(parameter, 0.3)
    model.train(training)
    stages = {name: f"c{i}" for i, name in enumerate(model.stage_names, start=2)}
    extractor = create_feature_extractor(model, stages)
    x = torch.randn(2, 3, 32, 32) if cifar else torch.randn(2, 3, 64, 64)

    actual = extractor(x)
    y, expected = model.stem(x), {}
    for name, key in stages.items():
        expected[key] = y = getattr(model, name)(y)
    assert list(actual) == list(expected)
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=0)
    with torch.no_grad():
        for key, value in extractor(x).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)

    weight = dict(extractor.named_parameters())["stem.conv.weight"]
    (through,) = torch.autograd.grad(sum(value.sum() for value in actual.values()), weight)
    (direct,) = torch.autograd.grad(sum(value.sum() for value in expected.values()), model.stem.conv.weight)
    torch.testing.assert_close(through, direct, rtol=1e-5, atol=1e-5)
    assert direct.abs().max() > 0


class Pyramid(nn.Module):
    """A detector's backbone: the four stages and torchvision's feature pyramid."""

    def __init__(self, body: nn.Module, widths: list[int], out_channels: int = 32) -> None:
        super().__init__()
        self.body, self.out_channels = body, out_channels
        self.fpn = FeaturePyramidNetwork(widths, out_channels, extra_blocks=LastLevelMaxPool())

    def forward(self, x):
        return self.fpn(self.body(x))


def test_faster_rcnn_on_r_isonet50_takes_a_training_step():
    torch.manual_seed(8)
    body = create_feature_extractor(isonet.r_isonet50(), {"s1": "0", "s2": "1", "s3": "2", "s4": "3"})
    detector = FasterRCNN(Pyramid(body, [256, 512, 1024, 2048]), num_classes=3, min_size=128, max_size=128)
    images = [torch.rand(3, 128, 128), torch.rand(3, 128, 128)]
    targets = [
        {"boxes": torch.tensor([[10.0, 12.0, 60.0, 70.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[40.0, 30.0, 120.0, 100.0], [5.0, 5.0, 30.0, 30.0]]), "labels": torch.tensor([2, 1])},
    ]
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    losses = detector.train()(images, targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert all(loss.isfinite() for loss in losses.values()), losses
    before = {name: parameter.clone() for name, parameter in body.named_parameters()}
    sum(losses.values()).backward()
    for name, parameter in body.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert body.stem.conv.weight.grad.abs().max() > 0
    assert body.s1.b1.f.shared_scalar.scale.grad.abs().max() > 0
    optimizer.step()
    assert not torch.equal(body.stem.conv.weight, before["stem.conv.weight"])
    detections = detector.eval()(images)
    assert all(each["boxes"].isfinite().all() for each in detections)
