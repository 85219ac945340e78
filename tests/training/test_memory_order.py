"""RUNTIME.CHANNELS_LAST auto: where it is on, what it changes, and runs that began with another value."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import TINY, assert_same
from isonet import load_cfg
from isonet.config import parse_cfg, uses_channels_last
from isonet.errors import ConfigError
from isonet.files.checkpoint import read_checkpoint
from isonet.training.run import run_training

pytestmark = pytest.mark.usefixtures("no_pictures")

BF16, TF32 = ["RUNTIME.AMP", "bf16"], ["RUNTIME.TF32", True]


def cfg(tmp_path, *opts):
    return load_cfg(None, [*TINY, "SOLVER.MAX_EPOCHS", 2, "OUTPUT_DIR", str(tmp_path), *opts])


def order(value):
    return ["RUNTIME.CHANNELS_LAST", value]


def rows(folder):
    return [json.loads(line) for line in folder.metrics.open()]


def weights(folder):
    return read_checkpoint(folder.latest)["model"]


@pytest.mark.parametrize(
    ("device", "opts", "expected"),
    [
        ("cpu", [], True),
        ("cuda", [], False),
        ("cuda", BF16, True),
        ("cuda", TF32, True),
        ("cpu", order("False"), False),
        ("cuda", [*BF16, *order("off")], False),
        ("cuda", order(True), True),
        ("cuda", [*TF32, *order("Auto")], True),
    ],
)
def test_where_it_is_on(device, opts, expected):
    assert uses_channels_last(load_cfg(None, opts), device) is expected


def test_another_value_is_refused():
    with pytest.raises(ConfigError, match=r"CHANNELS_LAST takes True, False or auto, got 'nhwc'"):
        load_cfg(None, order("nhwc"))


def test_on_a_cpu_auto_is_true_and_false_differs_by_rounding(tmp_path):
    auto, on, off = (run_training(cfg(tmp_path, *order(value)), str(value)) for value in ("auto", True, False))
    assert_same(weights(auto), weights(on))
    assert all(value.is_contiguous() for value in weights(auto).values()), "other programs expect NCHW in a file"
    assert not all(torch.equal(a, b) for a, b in zip(weights(auto).values(), weights(off).values(), strict=True))
    for a, b in zip(rows(auto), rows(off), strict=True):
        assert (a["cross_entropy"], a["val_loss"]) == pytest.approx((b["cross_entropy"], b["val_loss"]), rel=1e-5)


@pytest.mark.parametrize("began", [True, False])
def test_a_run_keeps_the_order_that_it_began_with_unless_the_user_names_another(tmp_path, began):
    """All runs from before the key was auto have True or False in their config."""
    whole = run_training(cfg(tmp_path, *order(began)), "whole")
    first = str(whole.path / "epoch0001.pt")
    resumed = run_training(cfg(tmp_path), "resumed", resume=first)
    assert_same(weights(resumed), weights(whole))
    assert resumed.metrics.read_text() == whole.metrics.read_text()
    other = run_training(cfg(tmp_path, *order(not began)), "other", resume=first)
    assert f"RUNTIME.CHANNELS_LAST {began} -> {not began}" in other.log.read_text()


def test_a_config_from_before_the_key_has_nchw_order():
    assert not uses_channels_last(parse_cfg("ISON:\n  DEPTH: 20\n", "a checkpoint"), "cpu")
