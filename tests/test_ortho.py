"""The penalty against its definition: the Gram matrix of the convolution written as a dense matrix."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.baseline import penalty_of_weight
from isonet import ortho_penalty, ortho_penalty_per_conv
from isonet.convs import ConvShape, shape_of
from isonet.fast_penalty import OrthoPenalty
from isonet.fast_penalty.gram import Grams, gram_penalty
from isonet.precision import full_precision

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
    (1, 4, 4, 9, {}),
    (2, 4, 4, 4, {}),
    (2, 4, 5, (2, 5), {}),
    (2, 4, 4, 5, {"stride": 2}),
    (2, 2, 4, 8, {"stride": 2}),
    (2, 4, 4, 5, {"groups": 2}),
    (3, 2, 2, 3, {}),
]


@pytest.mark.parametrize(("dims", "w_in", "w_out", "kernel", "options"), CASES)
def test_penalty_is_that_of_the_dense_matrix(dims, w_in, w_out, kernel, options):
    torch.manual_seed(0)
    conv = CONV[dims](w_in, w_out, kernel, **options)
    nn.init.normal_(conv.weight, std=0.3)
    assert ortho_penalty(conv).item() == pytest.approx(dense_penalty(conv), rel=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(3, 2), (4, 2), (1, 3)])
@pytest.mark.parametrize(("w_in", "w_out"), [(6, 4), (4, 6)])
def test_gradient_against_finite_differences(stride, kernel, w_in, w_out, groups):
    torch.manual_seed(0)
    shape = ConvShape(w_out, w_in, kernel, (stride, 1), (1, 1), groups)
    weights = [torch.randn(w_out, w_in // groups, *kernel, dtype=torch.double, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *w: gram_penalty(Grams(shape), w), weights)


def sum_over_offsets(weight: Tensor, stride: int) -> Tensor:
    """The penalty of a square kernel as it is defined: a Gram matrix for each offset."""
    narrow = weight if weight.shape[0] <= weight.shape[1] else weight.transpose(0, 1)
    k, total = weight.shape[2], torch.zeros((), dtype=weight.dtype)
    for dy, dx in itertools.product([d for d in range(1 - k, k) if d % stride == 0], repeat=2):
        moved = narrow[:, :, max(dy, 0) : k + min(dy, 0), max(dx, 0) : k + min(dx, 0)]
        resting = narrow[:, :, max(-dy, 0) : k + min(-dy, 0), max(-dx, 0) : k + min(-dx, 0)]
        gram = torch.einsum("idyx,jdyx->ij", moved, resting)
        if dy == dx == 0:
            gram = gram - torch.eye(len(gram), dtype=weight.dtype)
        total = total + gram.square().sum() / 2
    return total


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (2, 1), (3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2)])
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_float32_rounds_as_little_as_the_published_convolution(kernel, stride, noise):
    """Near the delta initialisation, where E is a small difference, and far from it; truth is float64."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 96, kernel, stride)
    nn.init.dirac_(conv.weight)
    with torch.no_grad():
        conv.weight.add_(noise * torch.randn_like(conv.weight) / math.sqrt(64 * kernel**2))

    def value_and_gradient(penalty, weight):
        weight = weight.detach().clone().requires_grad_()
        value = penalty(weight)
        return value.item(), torch.autograd.grad(value, weight)[0].double()

    true, true_grad = value_and_gradient(lambda w: sum_over_offsets(w, stride), conv.weight.double())

    def errors(penalty):
        value, grad = value_and_gradient(penalty, conv.weight)
        return abs(value - true) / true, ((grad - true_grad).norm() / true_grad.norm()).item()

    ours = errors(lambda w: gram_penalty(Grams(shape_of(conv)), [w]).sum())
    published = errors(lambda w: penalty_of_weight(w, stride))
    assert ours[0] <= max(4 * published[0], 1e-6)
    assert ours[1] <= 4 * published[1]


def test_a_plan_follows_the_weights_and_channels_last_changes_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 3, stride=2), nn.Conv2d(16, 16, 1))
    penalty = OrthoPenalty(net)
    before = penalty().item()
    assert penalty().item() == before
    net.to(memory_format=torch.channels_last)
    assert penalty().item() == pytest.approx(before, rel=1e-6)
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert penalty().item() == pytest.approx(sum(dense_penalty(conv) for conv in net), rel=1e-5)


def test_layers_of_one_shape_are_computed_together_and_wide_ones_alone():
    narrow = OrthoPenalty(nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(5)), nn.Conv2d(8, 8, 3, stride=2)))
    assert [len(convs) for _, convs in narrow.groups] == [5, 1]
    wide = OrthoPenalty(nn.Sequential(*(nn.Conv2d(512, 512, 3) for _ in range(2))))
    assert [len(convs) for _, convs in wide.groups] == [1, 1]


def test_products_are_exact_whatever_the_process_allows_and_its_choice_is_left_alone():
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision(torch.device("cpu")):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


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


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [8, 12])
def test_the_delta_initialisation_costs_nothing_to_the_bit(width, stride):
    conv = nn.Conv2d(8, width, 3, stride)
    nn.init.dirac_(conv.weight)
    penalty = ortho_penalty(conv)
    penalty.backward()
    assert penalty.item() == 0
    assert not conv.weight.grad.any()


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


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("out", "in_"), [(16, 64), (64, 16), (8, 8)])
def test_the_gradient_lies_in_memory_like_the_weight(out, in_, kernel):
    """Else torch copies it, and says so, in each process of several."""
    conv = nn.Conv2d(in_, out, kernel)
    ortho_penalty(conv).backward()
    assert conv.weight.grad.stride() == conv.weight.stride()
