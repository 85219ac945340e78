"""Work is divided among ranks evenly, each item exactly once, and in the same way on all ranks."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import REPO, TINY
from isonet import OrthoPenalty, build_model, load_cfg
from isonet.convs import shape_of
from isonet.fast_penalty import ortho_penalty_per_conv
from isonet.fast_penalty.gram import Grams
from isonet.fast_penalty.plan import deal_out
from isonet.models.build import assemble
from isonet.ortho import penalised_convs
from isonet.shares import WHOLE, Share, balance


@given(count=st.integers(0, 1000), parts=st.integers(1, 40))
def test_pieces_are_consecutive_and_their_sizes_differ_by_at_most_one(count, parts):
    pieces = [Share(i, parts).of(count) for i in range(parts)]
    assert [i for piece in pieces for i in range(count)[piece]] == list(range(count))
    sizes = [Share(i, parts).size(count) for i in range(parts)]
    assert sizes == [piece.stop - piece.start for piece in pieces] == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60, deadline=None)
@given(costs=st.lists(st.integers(1, 20), min_size=1, max_size=7), parts=st.integers(1, 3))
def test_the_most_expensive_part_is_at_most_a_third_above_the_optimum(costs, parts):
    divided = balance(costs, parts)
    assert sorted(itertools.chain(*divided)) == list(range(len(costs)))
    best = min(
        max(sum(c for c, p in zip(costs, ways, strict=True) if p == part) for part in range(parts))
        for ways in itertools.product(range(parts), repeat=len(costs))
    )
    assert max(sum(costs[i] for i in jobs) for jobs in divided) <= best * (4 / 3 - 1 / (3 * parts)) + 1e-9


def odd_network():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 6, 3, dilation=2), nn.Conv2d(6, 6, 1),
        nn.Conv2d(6, 6, 1), nn.Conv1d(6, 4, 5),
    )  # fmt: skip


BOTTLENECK = ["ISON.DEPTH", 29, "ISON.TRANS_FUN", "bottleneck_transform"]
NETWORKS = {
    "basic": lambda: build_model(load_cfg(None, [*TINY, "ISON.DEPTH", 20])),
    "bottleneck": lambda: build_model(load_cfg(None, [*TINY, *BOTTLENECK])),
    "odd": odd_network,
}


def value_and_gradient(model, share):
    model.zero_grad(set_to_none=False)
    penalty = OrthoPenalty(model, share)()
    if penalty.requires_grad:
        penalty.backward()
    return penalty.detach(), [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("parts", [2, 3, 64])
@pytest.mark.parametrize("network", NETWORKS)
def test_shares_add_up_to_the_penalty_and_its_gradient(network, parts, dtype):
    torch.manual_seed(0)
    model = NETWORKS[network]().to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    whole, gradient = value_and_gradient(model, WHOLE)
    actual = [value_and_gradient(model, Share(i, parts)) for i in range(parts)]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert sum(value for value, _ in actual).item() == pytest.approx(whole.item(), rel=tolerance)
    for total, *pieces in zip(gradient, *(grads for _, grads in actual), strict=True):
        assert (sum(pieces) - total).norm() <= tolerance * total.norm()
    if parts == 64:  # more than there are convolutions
        assert any(not OrthoPenalty(model, Share(i, parts))().requires_grad for i in range(parts))


@pytest.mark.parametrize("network", NETWORKS)
def test_each_convolution_is_unchanged_and_in_exactly_one_share(network):
    model = NETWORKS[network]()
    terms = ortho_penalty_per_conv(model)
    shares = [OrthoPenalty(model, Share(i, 3)).per_conv() for i in range(3)]
    assert sorted(itertools.chain(*shares)) == sorted(terms)
    for share in shares:
        for name, value in share.items():
            torch.testing.assert_close(value, terms[name])


@pytest.mark.parametrize(("config", "parts", "bound"), [("IN1k-RISO50", 4, 1.1), ("cifar10_ISO110", 8, 1.1)])
def test_shares_cost_about_the_same(config, parts, bound):
    with torch.device("meta"):
        model = assemble(load_cfg(REPO / "configs" / f"{config}.yaml"))
    costs = [sum(Grams(shape_of(c)).cost() for _, c in part) for part in deal_out(penalised_convs(model), parts)]
    assert max(costs) * parts / sum(costs) < bound
