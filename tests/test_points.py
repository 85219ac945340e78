"""Values at points tell the same penalty as the sum over offsets, whichever points they are."""

from __future__ import annotations

import math

import pytest
import torch

from isonet.fast_penalty.points import Frequencies, PhasesSideBySide, RealPoints, points_for

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kernel", "step", "products"),
    [
        ((1, 1), (1, 1), 1),
        ((3,), (1,), 3),
        ((2, 2), (1, 1), 5),
        ((3, 3), (1, 1), 13),
        ((3, 3), (2, 2), 10),  # phases of 2x2, 2x1, 1x2 and 1x1 taps: 5 + 2 + 2 + 1
        ((2, 2), (3, 3), 4),  # no two taps meet, and five of nine phases have none
    ],
)
def test_products_of_real_points(kernel, step, products):
    points = points_for(kernel, step, torch.float32, CPU)
    assert isinstance(points, RealPoints)
    assert points.products == products


@pytest.mark.parametrize(("kernel", "step"), [((4, 4), (1, 1)), ((1, 7), (1, 1)), ((3, 3, 3), (1, 1, 1))])
def test_what_real_points_would_round_goes_to_frequencies(kernel, step):
    points = points_for(kernel, step, torch.float32, CPU)
    assert isinstance(points, Frequencies)
    assert points.points == (math.prod(2 * k - 1 for k in kernel) + 1) // 2


@pytest.mark.parametrize("step", [(2, 2), (1, 2), (3, 1)])
@pytest.mark.parametrize("kernel", [(5, 5), (4, 6), (1, 9)])
def test_large_kernels_with_a_step_become_kernels_without(kernel, step):
    assert isinstance(points_for(kernel, step, torch.float32, CPU), PhasesSideBySide)


def ways(kernel, step):
    """Every way that is defined for kernels of this size."""
    yield RealPoints(kernel, step, torch.double, CPU)
    yield PhasesSideBySide(kernel, step, torch.double, CPU)
    if math.prod(step) == 1:
        yield Frequencies(kernel, torch.double, CPU)


@pytest.mark.parametrize(
    ("kernel", "step"),
    [((3, 3), (1, 1)), ((3, 3), (2, 2)), ((3, 2), (1, 2)), ((2, 2), (3, 3)), ((3,), (2,)), ((3, 2, 1), (2, 1, 1))],
)
@pytest.mark.parametrize("with_grad", [True, False])
def test_all_ways_agree(kernel, step, with_grad):
    torch.manual_seed(0)
    taps = torch.randn(math.prod(kernel), 2, 4, 5, dtype=torch.double)
    (expected, expected_grad), *others = (points.penalties(taps, with_grad) for points in ways(kernel, step))
    assert (expected_grad is not None) == with_grad
    for found, grad in others:
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(grad, expected_grad)


def test_tables_are_made_once():
    assert points_for((3, 3), (1, 1), torch.float32, CPU) is points_for((3, 3), (1, 1), torch.float32, CPU)
