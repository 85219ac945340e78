"""The Jacobian's extreme singular values and the signals' norms compared with dense matrices and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from conftest import REPO, TINY, reference_batch, reference_model
from isonet import SReLU, build_model, load_cfg
from isonet.errors import NonFiniteError
from isonet.isometry import extreme_singular_values, signal_norms
from isonet.isometry.jacobian import jacobian_of
from isonet.isometry.measure import measure


def tiny(*opts):
    torch.manual_seed(0)
    model = build_model(load_cfg(None, [*TINY, *opts])).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


NETWORKS = {
    "ISONet": [], "R-ISONet": ["ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True],
    "ResNet": ["ISON.HAS_ST", True, "ISON.HAS_BN", True, "ISON.SReLU", False],
}  # fmt: skip


@pytest.mark.parametrize("part", ["stem", "s3", "whole"])
@pytest.mark.parametrize("opts", NETWORKS.values(), ids=NETWORKS)
def test_extremes_equal_the_dense_jacobians(opts, part):
    model, x = tiny(*opts), torch.randn(1, 3, 4, 6, dtype=torch.float64)
    function = model
    if part != "whole":
        function = getattr(model, part)
        for name in ("stem", "s1", "s2", "s3"):
            if name == part:
                break
            x = getattr(model, name)(x)
    x = x.detach()
    dense = torch.autograd.functional.jacobian(function, x).reshape(function(x).numel(), x.numel())
    values = torch.linalg.svdvals(dense)
    product, transposed, columns, rows = jacobian_of(function, x)
    assert (rows, columns) == dense.shape
    v, u = torch.randn(columns, dtype=torch.float64), torch.randn(rows, dtype=torch.float64)
    torch.testing.assert_close(product(v), dense @ v)
    torch.testing.assert_close(transposed(u), dense.T @ u)
    found = extreme_singular_values(function, x, steps=2000, tolerance=1e-9)
    assert found.largest == pytest.approx(values[0].item(), rel=1e-6)
    assert found.smallest == pytest.approx(values[-1].item(), rel=1e-4, abs=1e-8 * values[0].item())


def test_a_few_steps_bound_the_extremes_from_within():
    torch.manual_seed(0)
    matrix = torch.randn(60, 40, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    last = None
    for steps in (3, 8, 20):
        found = extreme_singular_values(lambda x: matrix @ x, torch.zeros(40, dtype=torch.float64), steps, 0.0)
        assert found.steps == steps
        rounding = 1e-14 * values[0]  # an extreme that has converged is equal up to rounding
        assert values[-1] - rounding <= found.smallest <= found.largest <= values[0] + rounding
        assert (values - found.largest).abs().min() <= found.largest_error
        assert (values - found.smallest).abs().min() <= found.smallest_error
        assert last is None or (found.largest >= last.largest and found.smallest <= last.smallest)
        last = found
    exact = extreme_singular_values(lambda x: matrix @ x, torch.zeros(40, dtype=torch.float64), 999, 0.0)
    assert exact.steps == 40
    assert (exact.largest, exact.smallest) == pytest.approx((values[0].item(), values[-1].item()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [7, 12])
def test_a_smallest_value_that_is_not_determined_is_a_bound(rank, dtype):
    """The true value is below the bound if it is 0 and also if the search ended too early."""
    torch.manual_seed(0)
    matrix = (torch.randn(20, rank, dtype=torch.float64) @ torch.randn(rank, 12, dtype=torch.float64)).to(dtype)
    values = torch.linalg.svdvals(matrix.double())
    for steps in (2, 5, 12):
        found = extreme_singular_values(lambda x: matrix @ x, torch.zeros(12, dtype=dtype), steps, 0.0)
        assert values[-1] <= found.smallest + found.rounding
        assert found.smallest_is_bound == (steps < 12 or rank < 12)
        if not found.smallest_is_bound:
            assert found.smallest == pytest.approx(values[-1].item(), rel=0.1)
    assert found.largest == pytest.approx(values[0].item(), rel=1e-5)
    assert not found.largest_is_bound


def test_one_step_is_enough_for_an_isometry():
    rotation = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q
    found = extreme_singular_values(lambda x: 3 * rotation @ x, torch.zeros(30, dtype=torch.float64))
    assert found.steps == 1
    assert (found.largest, found.smallest) == pytest.approx((3.0, 3.0))


def test_the_part_whose_jacobian_overflows_is_named():
    opts = ["ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 1e6]
    torch.manual_seed(0)
    model = build_model(load_cfg(REPO / "configs" / "digits_ISO20.yaml", opts)).eval()
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(NonFiniteError, match=r"^ISONet: "):
        extreme_singular_values(model, x, 5)
    with pytest.raises(NonFiniteError, match=r"^(s\d|head|the whole network): "):
        measure(model, x, torch.tensor([0]), 5)
    for number in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match=r"^s1: "):
            extreme_singular_values(lambda x, number=number: number * x, torch.ones(3), name="s1")


def test_a_conv_with_non_finite_weights_is_named():
    model = tiny().float()
    with torch.no_grad():
        model.s2.b1.f.a.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"^s2\.b1\.f\.a: "):
        measure(model, torch.randn(1, 3, 8, 8), torch.tensor([0]), 1)


def test_the_gradient_at_ties_of_srelu_is_the_same_as_in_training():
    layer = SReLU(1, shift=0.0)
    x = torch.tensor([[[[1.0, 0.0], [-1.0, 2.0]]]])
    product, transposed, _, _ = jacobian_of(layer, x)
    ones = torch.ones(4)
    assert product(ones).tolist() == transposed(ones).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_norms_equal_a_closed_form():
    torch.manual_seed(0)
    a, b = nn.Linear(6, 5), nn.Linear(5, 3)
    model, x, labels = nn.Sequential(a, nn.ReLU(), b), torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    (found,) = signal_norms(model, x, labels)
    hidden = torch.relu(a(x))
    probabilities = torch.softmax(b(hidden), 1) - torch.nn.functional.one_hot(labels, 3)
    assert found.name == "1"
    assert found.forward == pytest.approx(hidden.norm(dim=1).mean().item(), rel=1e-5)
    assert found.backward == pytest.approx((probabilities @ b.weight).norm(dim=1).mean().item(), rel=1e-5)
    assert a.weight.grad is None


def test_the_signal_of_an_untrained_isonet_keeps_its_length_through_a_stage():
    model = build_model(load_cfg(None, ["DATASET.NAME", "CIFAR10", "DATASET.NUM_CLASSES", 10, "ISON.DEPTH", 56]))
    images, labels = reference_batch("cifar10_ISO20")
    norms = {norm.name: norm for norm in signal_norms(model, images, labels)}
    assert len(norms) == 1 + 54
    assert norms["s1.b9.relu"].forward == pytest.approx(norms["s1.b1.f.a_relu"].forward, rel=1e-5)
    plain = signal_norms(reference_model("cifar10_ISO20"), images, labels)
    assert all(math.isfinite(norm.backward) and norm.forward > 0 for norm in plain)
