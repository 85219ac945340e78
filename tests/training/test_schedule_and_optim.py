"""The learning rate of every epoch and the three groups of parameters."""

from __future__ import annotations

import json
import re

import pytest
import torch

from conftest import REFERENCE, REPO
from isonet import SReLU, build_model, load_cfg
from isonet.models import ResMultiplier
from isonet.training import build_optimizer, learning_rate_at, set_learning_rate
from isonet.training.optim import unused_warmup_factor

SCHEDULES = json.loads((REFERENCE / "lr_schedule.json").read_text())
CONFIG_OF = {"IN1k": "IN1k-RISO18.yaml", "CIFAR": "cifar10_ISO110.yaml"}


@pytest.mark.parametrize("name", list(SCHEDULES), ids=lambda name: name.split()[0])
def test_every_epoch_of_the_published_schedules_to_the_bit(name):
    cfg = load_cfg(REPO / "configs" / CONFIG_OF[name.split()[0]])
    optimizer = build_optimizer(build_model(cfg), cfg)
    expected = SCHEDULES[name]["lr_by_epoch_from_1"]
    assert len(expected) == cfg.SOLVER.MAX_EPOCHS
    for epoch, rates in enumerate(expected, start=1):
        set_learning_rate(optimizer, learning_rate_at(cfg, epoch))
        assert [group["lr"] for group in optimizer.param_groups] == rates, epoch


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_ramp_of_a_falling_rate_starts_at_its_factor_and_ends_at_the_full_rate(schedule):
    opts = ["SOLVER.BASE_LR", 1.0, "SOLVER.WARMUP", True, "SOLVER.WARMUP_EPOCH", 5, "SOLVER.WARMUP_FACTOR", 0.6]
    cfg = load_cfg(None, [*opts, "SOLVER.SCHEDULE", schedule])
    rates = [learning_rate_at(cfg, epoch) for epoch in range(1, 6)]
    assert rates == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])


@pytest.mark.parametrize("factor", [0.0, 0.01, 0.1, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 10, 31, 45])
def test_the_published_ramp_does_not_depend_on_the_factor(epochs, factor):
    """The rates are exactly equal. As published, epochs count from 1 and milestones apply only after the ramp."""
    opts = ["SOLVER.BASE_LR", 0.3, "SOLVER.WARMUP", True, "SOLVER.WARMUP_EPOCH", epochs, "SOLVER.WARMUP_FACTOR", factor]
    cfg = load_cfg(None, [*opts, "SOLVER.LR_MILESTONES", [30, 40]])
    rates = [learning_rate_at(cfg, epoch) for epoch in range(1, 51)]
    after = {epoch: 0.3 * 0.1 * 0.1 if epoch > 40 else 0.3 * 0.1 if epoch > 30 else 0.3 for epoch in range(1, 51)}
    assert rates == [0.3 * epoch / epochs if epoch < epochs else after[epoch] for epoch in range(1, 51)]


def warmup(epochs, factor, *opts):
    keys = ["SOLVER.WARMUP", True, "SOLVER.WARMUP_EPOCH", epochs, "SOLVER.WARMUP_FACTOR", factor]
    return unused_warmup_factor(load_cfg(None, [*keys, *opts]))


@pytest.mark.parametrize(
    ("epochs", "factor"),
    [(10, 0.1), (5, 0.2), (3, 0.333), (3, 1 / 3), (7, 0.143), (6, 0.167), (100, 0.01), (1, 1.0), (1, 0.2)],
)
def test_a_factor_that_states_the_published_ramp_gives_no_warning(epochs, factor):
    assert warmup(epochs, factor) == ""


def test_a_factor_that_states_another_ramp_is_reported_with_the_ramp_that_is_used():
    for epochs, factor in ((10, 0.2), (5, 0.1), (3, 0.3), (5, 0.0), (2, 1.0)):
        told = warmup(epochs, factor)
        assert f"SOLVER.WARMUP_FACTOR {factor:g} is not used" in told
        assert f"the full rate * epoch / {epochs}." in told
        silent = float(re.search(r"([\d.]+) states the same", told)[1])
        assert warmup(epochs, silent) == ""
    assert warmup(10, 0.2, "SOLVER.WARMUP", False) == ""
    for schedule in ("linear", "cosine"):
        assert warmup(10, 0.2, "SOLVER.SCHEDULE", schedule) == ""


@pytest.mark.parametrize("path", sorted((REPO / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_states_the_ramp_that_is_used(path):
    assert unused_warmup_factor(load_cfg(path)) == ""


@pytest.mark.parametrize(
    ("schedule", "left"), [("linear", [1, 0.75, 0.5, 0.25, 0]), ("cosine", [1, 0.8536, 0.5, 0.1464, 0])]
)
def test_a_rate_that_falls_with_every_step_reaches_0_at_the_end(schedule, left):
    """The rate rises from a half in two of 6 epochs and falls in the other four, also within each epoch."""
    opts = ["SOLVER.BASE_LR", 1.0, "SOLVER.WARMUP", True, "SOLVER.WARMUP_EPOCH", 3, "SOLVER.WARMUP_FACTOR", 0.5]
    cfg = load_cfg(None, [*opts, "SOLVER.SCHEDULE", schedule, "SOLVER.MAX_EPOCHS", 6])
    rates = [learning_rate_at(cfg, epoch) for epoch in range(1, 7)]
    assert learning_rate_at(cfg, 6, done=1.0) == 0.0
    assert [*rates, learning_rate_at(cfg, 6, done=1.0)] == pytest.approx([0.5, 0.75, *left], abs=1e-4)
    assert learning_rate_at(cfg, 1, done=0.5) == pytest.approx(0.625)
    assert rates[2] > learning_rate_at(cfg, 3, done=0.5) > rates[3]


def test_the_published_rate_is_constant_within_an_epoch():
    cfg = load_cfg(None, ["SOLVER.WARMUP", True])
    for epoch in (1, 4, 5, 31):
        assert learning_rate_at(cfg, epoch, done=0.9) == learning_rate_at(cfg, epoch)


def test_the_rate_grows_with_the_number_of_gpus():
    cfg = load_cfg(None, ["SOLVER.BASE_LR", 0.1])
    assert learning_rate_at(cfg, 1, num_gpus=4) == pytest.approx(0.4)


RISO = ["DATASET.NAME", "CIFAR10", "ISON.DEPTH", 20, "ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True]


def test_groups_contain_every_parameter_once_by_type_of_module():
    cfg = load_cfg(None, [*RISO, "SOLVER.WEIGHT_DECAY", 0.5])
    model = build_model(cfg)
    groups = {group["name"]: group for group in build_optimizer(model, cfg).param_groups}
    ids = {name: {id(p) for p in group["params"]} for name, group in groups.items()}
    assert ids["shifts"] == {id(m.srelu_bias) for m in model.modules() if isinstance(m, SReLU)}
    assert ids["multipliers"] == {id(m.scale) for m in model.modules() if isinstance(m, ResMultiplier)}
    assert sum(map(len, ids.values())) == len(list(model.parameters()))
    assert set.union(*ids.values()) == {id(p) for p in model.parameters()}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "shifts": 0.0, "weights": 0.5, "multipliers": 0.5,
    }  # fmt: skip
    assert {name: group["lr_scale"] for name, group in groups.items()} == {
        "shifts": 1.0, "weights": 1.0, "multipliers": 0.1,
    }  # fmt: skip


def test_a_name_does_not_decide_a_group():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.srelu_bias = torch.nn.Linear(2, 2)
            self.act = SReLU(2)

    cfg = load_cfg()
    groups = {group["name"]: group["params"] for group in build_optimizer(Odd(), cfg).param_groups}
    assert (len(groups["shifts"]), len(groups["weights"]), len(groups["multipliers"])) == (1, 2, 0)
