"""FLOPs compared with the reference, with the networks' closed form, and with the counted operators of a step."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import NUMERICS, REFERENCE, REPO, options
from isonet import build_model, load_cfg, ortho_penalty
from isonet.tools.flops import count_flops, format_table

FLOPS = json.loads((REFERENCE / "flops.json").read_text())


@pytest.mark.parametrize("name", list(FLOPS))
def test_reference_counts(name):
    count = count_flops(load_cfg(None, options(NUMERICS[name]["config"])))
    expected = FLOPS[name]
    assert count.params == expected["params"]
    assert count.macs == expected["macs_conv_linear"]
    assert count.flops == 2 * count.macs
    assert count.input == expected["input"]
    assert count.penalty_macs_half_offsets == expected["penalty_macs_half_offsets"]
    assert count.penalty_macs_published == expected["penalty_macs_reference"]


def test_stages_add_up_and_have_their_shapes():
    count = count_flops(load_cfg(REPO / "configs/IN1k-RISO50.yaml"))
    assert [(s.name, s.shape) for s in count.stages] == [
        ("stem", [64, 56, 56]), ("s1", [256, 56, 56]), ("s2", [512, 28, 28]), ("s3", [1024, 14, 14]),
        ("s4", [2048, 7, 7]), ("head", [1000]),
    ]  # fmt: skip
    assert sum(s.macs for s in count.stages) == count.macs
    assert sum(s.params for s in count.stages) == count.params
    assert count.stages[0].macs == 112 * 112 * 64 * 3 * 7 * 7


@pytest.mark.parametrize("config", ["cifar10_ISO29", "cifar10_RISO56", "cifar10_RES56"])
def test_the_cost_of_a_training_step_equals_the_cost_of_its_operators(config):
    """Count a real forward and backward pass on the CPU, including the operators of batch norm and SReLU."""
    cfg = load_cfg(REPO / f"configs/{config}.yaml", ["SOLVER.TRAIN_BATCH_SIZE", 2])
    count, model = count_flops(cfg), build_model(cfg)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert count.network_step_macs == counter.get_total_flops() // 2
    if cfg.ISON.ORTHO_COEFF == 0:
        assert count.penalty_share == count.penalty_step_macs == 0
    else:
        assert count.penalty_step_macs > 2 * count.penalty_macs > 0
        assert 0 < count.penalty_share < 1


@pytest.mark.parametrize(
    ("config", "strided"),
    [("cifar10_RISO56", "published"), ("cifar10_RISO56", "operator"), ("IN1k-RISO18", "published")],
)
def test_the_penalty_is_counted_as_it_is_computed(config, strided):
    """torch's counter measures one evaluation with real weights, without and with its gradient."""

    def counted(gradient):
        with torch.set_grad_enabled(gradient), FlopCounterMode(display=False) as counter:
            ortho_penalty(model, strided=strided)
        return counter.get_total_flops() // 2

    cfg = load_cfg(REPO / f"configs/{config}.yaml", ["ISON.ORTHO_STRIDED", strided])
    model, count = build_model(cfg), count_flops(cfg)
    assert counted(gradient=False) == pytest.approx(count.penalty_macs, rel=1e-3)  # 1e-3: the last sums over points
    assert counted(gradient=True) == pytest.approx(count.penalty_step_macs, rel=1e-3)


def test_the_table_contains_every_figure():
    count = count_flops(load_cfg(REPO / "configs/cifar10_ISO29.yaml"))
    table = format_table(count)
    for figure in (count.params, count.macs, count.flops, count.penalty_macs, count.penalty_macs_half_offsets):
        assert f"{figure:,}" in table


def test_a_penalty_at_every_fourth_step_costs_a_quarter_per_step():
    every, fourth = (count_flops(load_cfg(REPO / "configs/IN1k-RISO50.yaml", ["ISON.ORTHO_EVERY", k])) for k in (1, 4))
    assert fourth.penalty_step_macs * 4 == pytest.approx(every.penalty_step_macs, abs=2)
    assert fourth.network_step_macs == every.network_step_macs
    assert fourth.penalty_share < every.penalty_share / 3
