"""The baseline of the benchmarks computes the same penalty, activation and gradients as this code."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from benchmarks.baseline import BaselineSReLU, baseline_penalty, baseline_step, published_form_
from benchmarks.cases import Case, baseline, ours
from benchmarks.common import Row, check_equal, interleave, table
from benchmarks.tables import RESULTS, stored_table
from isonet import SReLU, build_model, load_cfg, ortho_penalty
from isonet.training import TrainStep


@pytest.fixture
def model():
    torch.manual_seed(0)
    opts = ["DATASET.NAME", "digits", "DATASET.NUM_CLASSES", 10, "ISON.DEPTH", 8, "ISON.HAS_ST", True]
    model = build_model(load_cfg(None, opts))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def test_the_baseline_has_the_same_penalty(model):
    assert baseline_penalty(model).item() == pytest.approx(ortho_penalty(model).item(), rel=1e-5)


def test_the_baseline_srelu_has_the_same_gradients_at_ties():
    layer = SReLU(3)
    x = torch.randn(2, 3, 4, 4).round().requires_grad_()
    grads = []
    for act in (layer, BaselineSReLU(layer.srelu_bias)):
        y = act(x)
        grads.append((y.detach(), *torch.autograd.grad((y * torch.arange(4.0)).sum(), [x, layer.srelu_bias])))
    for found, published in zip(*grads, strict=True):
        torch.testing.assert_close(found, published)


def test_baseline_steps_have_the_same_losses(model):
    twin = published_form_(copy.deepcopy(model))
    assert not any(isinstance(module, SReLU) for module in twin.modules())
    images, labels = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
    step = TrainStep(model, model, torch.optim.SGD(model.parameters(), 0.05), 1e-2)
    optimizer = torch.optim.SGD(twin.parameters(), 0.05)
    for _ in range(3):
        out, published = step(images, labels), baseline_step(twin, optimizer, images, labels, 1e-2)
        assert (out.cross_entropy.item(), out.penalty.item()) == pytest.approx(published[:2], rel=1e-5)


@dataclass(frozen=True)
class Decaying(Case):
    """A case in which the weight decay is as large as the gradients."""

    def cfg(self):
        cfg = super().cfg().clone()
        cfg.defrost()
        cfg.SOLVER.WEIGHT_DECAY = 10.0
        return cfg


def test_both_variants_of_a_case_decay_the_same_parameters():
    case = Decaying("digits_ISO20", 4, 8)
    variants = [variant(case, torch.device("cpu")) for variant in (baseline, ours)]
    for _ in range(3):
        published, found = (variant() for variant in variants)
        assert found == pytest.approx(published, rel=1e-5)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_the_tables_of_the_readme_match_the_stored_results(file):
    assert stored_table(file) in (RESULTS.parent / "README.md").read_text()


def test_different_results_end_a_benchmark():
    with pytest.raises(SystemExit, match="differ"):
        check_equal("work", [1.0], [1.1], 1e-2)


def test_variants_run_alternately():
    order = []
    interleave([lambda: order.append("a"), lambda: order.append("b")], 3, torch.device("cpu"))
    assert order == ["a", "b"] * 4  # the first pair is the warm-up


def test_a_row_that_did_not_run_has_a_reason_instead_of_numbers():
    assert table([Row("x", None, None, None, 2.0, "", "not run: why")]).endswith("| x |  |  |  |  | 2 | not run: why |")


def test_published_form_keeps_every_parameter():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), SReLU(4))
    before = {name: id(p) for name, p in net.named_parameters()}
    assert {name: id(p) for name, p in published_form_(net).named_parameters()} == before
