"""The penalty against its definition: the Gram matrix of the convolution written as a dense matrix."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from isonet import ortho_penalty, ortho_penalty_per_conv
from isonet.ortho import gram_penalty

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def dense_matrix(conv: nn.Module, size: int) -> Tensor:
    """The convolution on a periodic grid as a matrix: (out * outputs, in * inputs)."""
    weight = conv.weight.detach().double()
    n_out, per_group = weight.shape[:2]
    n_in, dims = per_group * conv.groups, weight.ndim - 2
    grid = list(itertools.product(range(size), repeat=dims))
    outputs = [p for p in grid if all(x % s == 0 for x, s in zip(p, conv.stride, strict=True))]
    matrix = torch.zeros(n_out, len(outputs), n_in, len(grid), dtype=torch.double)
    place = {p: i for i, p in enumerate(grid)}
    for o, (row, p) in itertools.product(range(n_out), enumerate(outputs)):
        first = o // (n_out // conv.groups) * per_group
        for tap in itertools.product(*map(range, conv.kernel_size)):
            q = tuple((x + t * d) % size for x, t, d in zip(p, tap, conv.dilation, strict=True))
            matrix[o, row, first : first + per_group, place[q]] += weight[(o, slice(None), *tap)]
    return matrix.flatten(2).flatten(0, 1)


def dense_penalty(conv: nn.Module) -> float:
    """1/2 || A A^T - I ||^2 per output position; A is made of the transposed kernel where it has fewer inputs."""
    if conv.in_channels < conv.out_channels:
        swapped = type(conv)(
            conv.out_channels,
            conv.in_channels,
            conv.kernel_size,
            conv.stride,
            dilation=conv.dilation,
            groups=conv.groups,
        )
        groups = conv.weight.detach().chunk(conv.groups)
        swapped.weight = nn.Parameter(torch.cat([g.transpose(0, 1) for g in groups]))
        conv = swapped
    reach = max((k - 1) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    multiple = math.lcm(*conv.stride)
    size = -(-(2 * reach + 1) // multiple) * multiple  # no offset meets another around the edge
    matrix = dense_matrix(conv, size)
    gram = matrix @ matrix.T
    positions = len(gram) // conv.out_channels
    return ((gram - torch.eye(len(gram))).square().sum() / 2 / positions).item()


CASES = [
    (2, 4, 6, 3, {}),
    (2, 6, 4, 3, {}),
    (2, 4, 4, 3, {"stride": 2}),
    (2, 6, 4, 3, {"stride": 2}),
    (2, 4, 6, 3, {"stride": 2}),
    (2, 4, 5, 1, {"stride": 2}),
    (2, 4, 4, 3, {"stride": 3}),
    (2, 4, 4, 2, {}),
    (2, 4, 4, (1, 3), {"stride": (2, 1)}),
    (2, 4, 4, 3, {"dilation": 2}),
    (2, 4, 4, 3, {"dilation": 2, "stride": 2}),
    (2, 4, 4, 3, {"dilation": 3, "stride": 2}),
    (2, 4, 8, 3, {"groups": 2}),
    (2, 8, 4, 3, {"groups": 2, "stride": 2}),
    (2, 6, 6, 3, {"groups": 6}),
    (1, 4, 6, 5, {"stride": 2}),
    (3, 2, 4, 2, {"stride": 2}),
    (3, 4, 2, (3, 1, 2), {}),
]


@pytest.mark.parametrize(("dims", "w_in", "w_out", "kernel", "options"), CASES)
def test_penalty_is_that_of_the_dense_matrix(dims, w_in, w_out, kernel, options):
    torch.manual_seed(0)
    conv = CONV[dims](w_in, w_out, kernel, **options)
    nn.init.normal_(conv.weight, std=0.3)
    assert ortho_penalty(conv).item() == pytest.approx(dense_penalty(conv), rel=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("w_in", "w_out"), [(3, 2), (2, 3)])
def test_gradient_against_finite_differences(stride, w_in, w_out):
    torch.manual_seed(0)
    weight = torch.randn(2, w_out, w_in, 3, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: gram_penalty(w, (stride, stride), (1, 1)), (weight,))


def test_gradient_through_a_module():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 4, 1)).double()
    names, weights = zip(*((n, p) for n, p in net.named_parameters() if p.ndim == 4), strict=True)

    class Penalty(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self):
            return ortho_penalty(self.net)

    def penalty(*values):
        return functional_call(Penalty(), {f"net.{n}": v for n, v in zip(names, values, strict=True)}, ())

    assert torch.autograd.gradcheck(penalty, weights)


def test_an_orthogonal_kernel_costs_nothing():
    conv = nn.Conv2d(8, 8, 3)
    nn.init.dirac_(conv.weight)
    assert ortho_penalty(conv).item() == 0


def test_sum_and_terms_agree_over_layers_of_many_shapes():
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 8, 3),
            "seven": nn.Conv2d(4, 8, 7),
            "a": nn.Conv2d(8, 8, 3),
            "b": nn.Conv2d(8, 8, 3, stride=2),
            "c": nn.Conv2d(8, 8, 3),
            "d": nn.Conv2d(8, 4, 1),
        }
    )
    terms = ortho_penalty_per_conv(net)
    assert list(terms) == ["a", "b", "c", "d"]
    for name, term in terms.items():
        assert term.item() == pytest.approx(dense_penalty(net[name]), rel=1e-5)
    assert ortho_penalty(net).item() == pytest.approx(sum(t.item() for t in terms.values()), rel=1e-6)


def test_a_module_without_convolutions_has_no_penalty():
    assert ortho_penalty(nn.Linear(3, 3)).item() == 0


def test_autocast_does_not_lower_the_precision():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3)
    expected = ortho_penalty(conv)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ortho_penalty(conv), expected)


def test_half_precision_weights_are_summed_in_float32():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3).to(torch.bfloat16)
    assert ortho_penalty(conv).item() == pytest.approx(ortho_penalty(conv.float()).item(), rel=1e-6)


def test_transposed_convolutions_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^up is a ConvTranspose2d.*not supported"):
        ortho_penalty(nn.ModuleDict({"up": nn.ConvTranspose2d(4, 4, 3)}))
