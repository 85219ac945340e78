"""Networks built from configs: shapes, depths and initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isonet import SReLU, build_model, load_cfg
from isonet.config import flat
from isonet.errors import ConfigError
from isonet.files.described import described
from isonet.models import ResMultiplier

CIFAR = ["DATASET.NAME", "CIFAR10", "DATASET.NUM_CLASSES", 10]
BOTTLENECK = ["ISON.TRANS_FUN", "bottleneck_transform"]
RISO = ["ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.0]


def convs(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(
    ("opts", "layers"),
    [
        (["ISON.DEPTH", 18], 18),
        (["ISON.DEPTH", 34], 34),
        (["ISON.DEPTH", 50, *BOTTLENECK], 50),
        (["ISON.DEPTH", 101, *BOTTLENECK], 101),
        (["ISON.DEPTH", 152, *BOTTLENECK], 152),
        ([*CIFAR, "ISON.DEPTH", 20], 20),
        ([*CIFAR, "ISON.DEPTH", 110], 110),
        ([*CIFAR, "ISON.DEPTH", 29, *BOTTLENECK], 29),
        ([*CIFAR, "ISON.DEPTH", 164, *BOTTLENECK], 164),
    ],
)
def test_depth_counts_convs_and_the_linear_layer(opts, layers):
    with torch.device("meta"):
        model = build_model(load_cfg(None, opts))
    assert len(convs(model)) + 1 == layers
    assert described(model.state_dict())["ISON.DEPTH"] == layers


@pytest.mark.parametrize(
    "opts", [[], RISO, ["ISON.HAS_BN", True], ["ISON.SReLU", False, *BOTTLENECK, "ISON.DEPTH", 29]]
)
def test_weights_determine_the_keys_of_their_network(opts):
    cfg = load_cfg(None, [*CIFAR, "ISON.DEPTH", 20, *opts])
    with torch.device("meta"):
        found = described(build_model(cfg).state_dict())
    assert found.pop("DATASET.IMAGE_SIZE") == "up to 64"
    assert found == {key: flat(cfg)[key] for key in found}
    assert {"ISON.TRANS_FUN", "ISON.HAS_ST", "DATASET.NUM_CLASSES"} < set(found)
    assert not described({"layer": torch.zeros(1)})


def test_bottleneck_widths_and_stride():
    model = build_model(load_cfg(None, [*CIFAR, "ISON.DEPTH", 29, *BOTTLENECK]))
    block = model.s2.b1.f
    assert (block.a.weight.shape[:2], block.b.weight.shape[:2], block.c.weight.shape[:2]) == (
        (32, 64),
        (32, 32),
        (128, 32),
    )
    assert (block.a.stride, block.b.stride, block.c.stride) == ((1, 1), (2, 2), (1, 1))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["ISON.DEPTH", 20], ["20", "18, 34", "50, 101, 152", "DATASET.IMAGE_SIZE 64", "configs/IN1k-RISO18.yaml"]),
        (["ISON.DEPTH", 50], ["bottleneck_transform: 50, 101, 152"]),
        ([*CIFAR, "ISON.DEPTH", 18], ["14 and 20", "DATASET.IMAGE_SIZE above 64", "configs/IN1k"]),
        ([*CIFAR, "ISON.DEPTH", 29], ["6n+2", "26", "32"]),
        ([*CIFAR, "ISON.DEPTH", 2], ["6n+2", "8"]),
        ([*CIFAR, "ISON.DEPTH", 26, *BOTTLENECK], ["9n+2", "20", "29"]),
        (["ISON.TRANS_FUN", "basic"], ["'basic'", "basic_transform", "bottleneck_transform"]),
    ],
)
def test_an_unknown_network_is_refused_with_the_nearest_name(opts, words):
    with pytest.raises(ConfigError) as error:
        build_model(load_cfg(None, opts))
    assert all(word in str(error.value) for word in words), error.value


def test_an_untrained_risonet_computes_only_its_shortcuts():
    """While every multiplier is 0, a change in a residual branch does not change the output."""
    model = build_model(load_cfg(None, [*CIFAR, "ISON.DEPTH", 20, *RISO])).eval()
    assert sum(isinstance(m, ResMultiplier) for m in model.modules()) == 9
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    nn.init.normal_(model.s2.b2.f.a.weight)
    assert torch.equal(model(x), before)


def test_batch_norm_with_shortcuts_starts_each_branch_at_zero():
    overrides = ["ISON.HAS_BN", True, "ISON.HAS_ST", True, "ISON.SReLU", False]
    model = build_model(load_cfg(None, [*CIFAR, "ISON.DEPTH", 20, *overrides]))
    assert model.s1.b1.f.b_bn.weight.count_nonzero() == 0
    assert model.s1.b1.f.a_bn.weight.eq(1).all()
    assert model.s2.b1.bn.weight.eq(1).all()  # the batch norm of the shortcut
    plain = build_model(load_cfg(None, [*CIFAR, "ISON.DEPTH", 20, "ISON.HAS_BN", True]))
    assert plain.s1.b1.f.b_bn.weight.eq(1).all()  # without shortcuts, a 0 stops the signal


def test_an_untrained_isonet_passes_the_signal_unchanged():
    """With delta initialisation and SReLU, 20 layers are the identity where the input is above the shift."""
    model = build_model(load_cfg(None, [*CIFAR, "ISON.DEPTH", 20]))
    x = torch.rand(1, 3, 32, 32)
    features = model.s1(model.stem(x))
    torch.testing.assert_close(features[:, :3], x)


def test_two_networks_in_one_process_are_independent():
    iso = build_model(load_cfg(None, [*CIFAR, "ISON.DEPTH", 20]))
    res = build_model(load_cfg(None, [*CIFAR, "ISON.DEPTH", 20, "ISON.SReLU", False, "ISON.HAS_BN", True]))
    assert any(isinstance(m, SReLU) for m in iso.modules())
    assert not any(isinstance(m, SReLU) for m in res.modules())


def test_dropout_comes_before_the_linear_layer():
    model = build_model(load_cfg(None, ["ISON.DEPTH", 18, "ISON.DROPOUT", True, "ISON.DROPOUT_RATE", 0.4]))
    assert model.head.dropout.p == 0.4
    assert isinstance(build_model(load_cfg(None, ["ISON.DEPTH", 18])).head.dropout, nn.Identity)
