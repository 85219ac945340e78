"""ISON.ORTHO_EVERY: the penalty at every k-th step of the run, times k."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import TINY, assert_same
from isonet import SReLU, build_model, load_cfg, ortho_penalty
from isonet.files.checkpoint import read_checkpoint
from isonet.training import TrainStep
from isonet.training.run import run_training

EVERY = 4  # 11 steps an epoch: steps 4 and 8 of the first epoch, 1, 5 and 9 of the second one
COEFF = ["ISON.ORTHO_COEFF", 1e-2]

pytestmark = pytest.mark.usefixtures("no_pictures")


def cfg(tmp_path, *opts, every=EVERY):
    saved = ["RUNTIME.SAVE_EVERY", 1, "RUNTIME.KEEP", 99, "SOLVER.MAX_EPOCHS", 2]
    return load_cfg(None, [*TINY, *COEFF, *saved, "ISON.ORTHO_EVERY", every, "OUTPUT_DIR", str(tmp_path), *opts])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of two epochs with a checkpoint after every step."""
    return run_training(cfg(tmp_path_factory.mktemp("whole")), "run")


def after(folder, epoch, step):
    name = f"epoch{epoch:04}-step{step:06}.pt" if step else f"epoch{epoch:04}.pt"
    return read_checkpoint(folder.path / name)["model"]


def penalty_of(config, weights):
    model = build_model(config)
    model.load_state_dict(weights)
    return ortho_penalty(model).item()


def test_a_weight_multiplies_the_gradient_of_the_penalty_and_0_leaves_it_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), SReLU(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 7))
    step = TrainStep(model, model, torch.optim.SGD(model.parameters(), 0.1), ortho_coeff=0.01)
    images, labels = torch.randn(5, 4, 8, 8), torch.arange(5)
    known = 0.0
    for weight in (0, 3, 0):
        penalty = ortho_penalty(model)
        loss = F.cross_entropy(model(images), labels) + 0.01 * weight * penalty
        grads = torch.autograd.grad(loss, list(model.parameters()))
        expected = [p.detach() - 0.1 * grad for p, grad in zip(model.parameters(), grads, strict=True)]
        known = penalty.item() if weight else known
        assert step(images, labels, penalty_weight=weight).penalty.item() == pytest.approx(known, rel=1e-5)
        for p, q in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), q)


@pytest.mark.parametrize("epoch", [1, 2])
def test_only_every_kth_step_of_the_run_has_the_penalty(whole, tmp_path, epoch):
    """Two runs that differ only in the coefficient have the same weights until the next step with the penalty."""
    begin = {} if epoch == 1 else {"resume": str(whole.path / "epoch0001.pt")}
    without = run_training(cfg(tmp_path, "ISON.ORTHO_COEFF", 0.0, "SOLVER.MAX_EPOCHS", epoch), "without", **begin)
    first = {1: 4, 2: 1}[epoch]
    for step in range(1, first):
        assert_same(after(without, epoch, step), after(whole, epoch, step))
    same = [torch.equal(a, b) for a, b in zip(after(without, epoch, first).values(),
                                              after(whole, epoch, first).values(), strict=True)]  # fmt: skip
    assert not all(same)


def test_between_two_penalties_the_weights_do_not_depend_on_the_coefficient(whole, tmp_path):
    resume = str(whole.path / "epoch0002-step000001.pt")
    without = run_training(cfg(tmp_path, "ISON.ORTHO_COEFF", 0.0), "without", resume=resume)
    assert_same(after(without, 2, 4), after(whole, 2, 4))
    assert not torch.equal(after(without, 2, 5)["s1.b1.f.a.weight"], after(whole, 2, 5)["s1.b1.f.a.weight"])


def test_the_log_has_the_last_penalty_that_was_computed(whole, tmp_path):
    rows = [json.loads(line) for line in whole.metrics.open()]
    config = cfg(tmp_path)
    assert rows[0]["penalty"] == pytest.approx(penalty_of(config, after(whole, 1, 7)), rel=1e-5)  # of step 8
    assert rows[1]["penalty"] == pytest.approx(penalty_of(config, after(whole, 2, 8)), rel=1e-5)  # of step 9
    never = run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 1, "ISON.DIRAC_INIT", False, every=1000), "never")
    assert "ISON.ORTHO_EVERY 1000: no step of the run has the penalty" in never.log.read_text()
    assert "no step of the run" not in whole.log.read_text()
    torch.manual_seed(0)
    initial = build_model(cfg(tmp_path, "ISON.DIRAC_INIT", False))
    assert json.loads(never.metrics.read_text())["penalty"] == pytest.approx(ortho_penalty(initial).item(), rel=1e-5)


def test_a_changed_k_counts_the_earlier_steps_of_the_epoch_with_their_last_penalty(whole, tmp_path):
    config = cfg(tmp_path, "SOLVER.MAX_EPOCHS", 1, every=1)
    resumed = run_training(config, "resumed", resume=str(whole.path / "epoch0001-step000006.pt"))
    later = [penalty_of(config, after(resumed if step > 6 else whole, 1, step)) for step in range(6, 11)]
    mean = (6 * penalty_of(config, after(whole, 1, 3)) + sum(later)) / 11
    assert json.loads(resumed.metrics.read_text())["penalty"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("at", ["epoch0001-step000006.pt", "epoch0001.pt", "epoch0002-step000003.pt"])
def test_a_resumed_run_is_bit_identical(whole, tmp_path, at):
    resumed = run_training(cfg(tmp_path), "resumed", resume=str(whole.path / at))
    assert resumed.metrics.read_text() == whole.metrics.read_text()
    assert_same(read_checkpoint(resumed.latest)["model"], read_checkpoint(whole.latest)["model"])
