"""The points at which the fast penalty evaluates kernels: the number of products, and the kernels that use points."""

from __future__ import annotations

import pytest
import torch

from isonet.fast_penalty.gram import has_points, points_for

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kernel", "step", "products"),
    [
        ((1, 1), (1, 1), 1),
        ((3,), (1,), 3),
        ((2, 2), (1, 1), 5),
        ((3, 3), (1, 1), 13),
        ((2, 2, 2), (1, 1, 1), 14),
        ((3, 3), (2, 2), 10),  # phases of 2x2, 2x1, 1x2 and 1x1 taps: 5 + 2 + 2 + 1
        ((2, 2), (3, 3), 4),  # no two taps overlap, and five of nine phases have no taps
    ],
)
def test_products_of_a_kernel(kernel, step, products):
    assert has_points(kernel, step)
    assert points_for(kernel, step, torch.float32, CPU).products == products


@pytest.mark.parametrize(("kernel", "step"), [((4, 4), (1, 1)), ((1, 7), (1, 1)), ((3, 3, 3), (1, 1, 1))])
def test_kernels_for_which_points_would_round_use_no_points(kernel, step):
    assert not has_points(kernel, step)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 1), (3,), (2, 2, 2)])
def test_the_penalty_without_its_gradient_is_the_same(kernel):
    torch.manual_seed(0)
    points = points_for(kernel, (1,) * len(kernel), torch.float64, CPU)
    taps = torch.randn(torch.Size(kernel).numel(), 2, 4, 5, dtype=torch.float64)
    value, gradient = points.penalties(taps, with_grad=False)
    assert gradient is None
    assert torch.equal(value, points.penalties(taps, with_grad=True)[0])


def test_tables_are_built_once():
    assert points_for((3, 3), (1, 1), torch.float32, CPU) is points_for((3, 3), (1, 1), torch.float32, CPU)
