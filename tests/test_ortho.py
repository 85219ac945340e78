"""The penalty's definition compared with the Gram matrix of a convolution written as a dense matrix."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isonet import OrthoPenalty, ortho_penalty, ortho_penalty_per_conv
from isonet.convs import ConvShape, shape_of
from isonet.ortho import STRIDED, kernel_penalty

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
every_strided = pytest.mark.parametrize("strided", STRIDED)

# Axes, inputs, outputs, kernel, options
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
    # More outputs than the operator has columns
    (2, 4, 20, 3, {"stride": 2}),
    (2, 3, 20, 1, {"stride": 2}),
    (2, 2, 16, 3, {"stride": 2, "dilation": 2}),
    (2, 2, 6, 3, {"stride": 2, "dilation": 2}),
    (1, 3, 8, 4, {"stride": 2, "dilation": 6}),
    (2, 4, 36, 3, {"stride": 2, "groups": 2}),
]


def dense_matrix(conv: nn.Module, size: int) -> Tensor:
    """Return the convolution on a periodic grid as a matrix: (out * outputs, in * inputs)."""
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


def dense_distance(conv: nn.Module) -> float:
    """Return || A A^T - I ||^2 per output position, for the matrix A of ``conv`` on a periodic grid."""
    reach = max((k - 1) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    multiple = math.lcm(*conv.stride)
    size = -(-(2 * reach + 1) // multiple) * multiple  # no two offsets coincide across the periodic edge
    matrix = dense_matrix(conv, size)
    gram = matrix @ matrix.T
    positions = len(gram) // conv.out_channels
    return ((gram - torch.eye(len(gram))).square().sum() / positions).item()


def dense_penalty(conv: nn.Module, strided: str = "published") -> float:
    """Return ``conv``'s penalty by its dense matrix. "published" exchanges outputs and inputs of a wide kernel."""
    n_out, n_in = conv.out_channels, conv.in_channels
    if strided == "operator":
        return (dense_distance(conv) - max(0, n_out - math.prod(conv.stride) * n_in)) / 2
    if n_in < n_out:
        swapped = type(conv)(n_out, n_in, conv.kernel_size, conv.stride, dilation=conv.dilation, groups=conv.groups)
        groups = conv.weight.detach().chunk(conv.groups)
        swapped.weight = nn.Parameter(torch.cat([g.transpose(0, 1) for g in groups]))
        conv = swapped
    return dense_distance(conv) / 2


@every_strided
@pytest.mark.parametrize(("dims", "w_in", "w_out", "kernel", "options"), CASES)
def test_definition_and_fast_form_are_the_dense_matrix(dims, w_in, w_out, kernel, options, strided):
    torch.manual_seed(0)
    conv = CONV[dims](w_in, w_out, kernel, **options)
    nn.init.normal_(conv.weight, std=0.3)
    expected = dense_penalty(conv, strided)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
        conv.to(dtype)
        penalties = [
            kernel_penalty(conv.weight, shape_of(conv), strided),
            ortho_penalty(conv, strided=strided, everywhere=True),
        ]
        assert [p.item() for p in penalties] == pytest.approx([expected] * 2, rel=tolerance)
        definition, fast = (torch.autograd.grad(penalty, conv.weight)[0] for penalty in penalties)
        torch.testing.assert_close(fast, definition, rtol=100 * tolerance, atol=tolerance * definition.abs().max())


@every_strided
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(3, 2), (4, 2), (1, 3)])
@pytest.mark.parametrize(("w_in", "w_out"), [(6, 4), (4, 6), (2, 10)])
def test_the_definition_is_differentiable_twice(w_in, w_out, kernel, stride, groups, strided):
    torch.manual_seed(0)
    shape = ConvShape(w_out, w_in, kernel, (stride, 1), (1, 1), groups)
    weight = torch.randn(w_out, w_in // groups, *kernel, dtype=torch.double, requires_grad=True)

    def penalty(weight):
        return kernel_penalty(weight, shape, strided)

    assert torch.autograd.gradcheck(penalty, weight, fast_mode=True)
    assert torch.autograd.gradgradcheck(penalty, weight, fast_mode=True)


def test_known_values_of_the_operators_penalty():
    """The delta kernel loses 8 of 16 channels. A kernel whose upper left 2x2 taps are orthonormal rows loses none."""
    delta = nn.init.dirac_(torch.empty(16, 8, 3, 3, dtype=torch.double))
    conv = nn.Conv2d(8, 16, 3, stride=2).double()
    conv.weight.data = delta
    assert ortho_penalty(conv, strided="operator").item() == pytest.approx(4, rel=1e-14)
    assert ortho_penalty(conv).item() == 0
    torch.manual_seed(0)
    conv.weight.data = torch.zeros_like(delta)
    conv.weight.data[:, :, :2, :2] = nn.init.orthogonal_(torch.empty(16, 32, dtype=torch.double)).view(16, 8, 2, 2)
    assert ortho_penalty(conv, strided="operator").item() < 1e-25
    assert 4 < ortho_penalty(conv).item() < 7


@pytest.mark.parametrize(("w_in", "w_out"), [(2, 8), (2, 12), (8, 4)])
def test_the_operators_penalty_is_0_for_orthonormal_rows_or_columns(w_in, w_out):
    """If the stride equals the kernel size, the operator is a matrix of w_out x 4 w_in."""
    torch.manual_seed(0)
    conv = nn.Conv2d(w_in, w_out, 2, stride=2).double()
    conv.weight.data = nn.init.orthogonal_(torch.empty(w_out, 4 * w_in, dtype=torch.double)).view_as(conv.weight)
    assert ortho_penalty(conv, strided="operator").item() < 1e-25


@pytest.mark.parametrize(("w_in", "w_out", "stride"), [(8, 8, 1), (8, 16, 2), (4, 20, 2), (16, 8, 2)])
def test_lorth_is_twice_the_operators_penalty(w_in, w_out, stride):
    """Achour et al. 2022, equation 5: a convolution of the kernel with itself, at multiples of the stride."""
    torch.manual_seed(0)
    conv = nn.Conv2d(w_in, w_out, 3, stride).double()
    offset = (3 - 1) // stride * stride
    gram = F.conv2d(conv.weight, conv.weight, stride=stride, padding=offset)
    middle = offset // stride
    gram[:, :, middle, middle] -= torch.eye(w_out)
    lorth = gram.square().sum() - max(0, w_out - stride**2 * w_in)
    assert ortho_penalty(conv, strided="operator").item() == pytest.approx(lorth.item() / 2, rel=1e-12)


@every_strided
@pytest.mark.parametrize(
    ("dims", "w_in", "w_out", "kernel", "options"),
    [
        (1, 6, 4, 3, {}),
        (2, 8, 4, 2, {"stride": 2}),
        (2, 4, 8, 3, {"stride": 2}),
        (2, 4, 8, 4, {"stride": 2, "groups": 2}),
        (3, 4, 2, 2, {"stride": 2}),
    ],
)
def test_a_transposed_convolution_has_the_penalty_of_its_adjoint(dims, w_in, w_out, kernel, options, strided):
    """The inner product shows that ``conv`` is its adjoint: <up(x), y> = <x, conv(y)>."""
    torch.manual_seed(0)
    up = TRANSPOSED[dims](w_in, w_out, kernel, bias=False, **options).double()
    conv = CONV[dims](w_out, w_in, kernel, bias=False, **options).double()
    conv.weight = up.weight
    x = torch.randn(1, w_in, *[4] * dims, dtype=torch.double)
    y = torch.randn_like(up(x))
    assert (up(x) * y).sum().item() == pytest.approx((x * conv(y)).sum().item(), rel=1e-12)
    assert ortho_penalty(up, strided=strided).item() == pytest.approx(dense_penalty(conv, strided), rel=1e-11)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [8, 12])
def test_the_penalty_of_the_delta_initialisation_is_exactly_0(width, stride):
    conv = nn.Conv2d(8, width, 3, stride)
    nn.init.dirac_(conv.weight)
    penalty = ortho_penalty(conv)
    penalty.backward()
    assert penalty.item() == 0
    assert not conv.weight.grad.any()


def test_the_sum_and_its_terms_agree_over_layers_of_many_shapes():
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 8, 3),
            "seven": nn.Conv2d(4, 8, 7),
            "a": nn.Conv2d(8, 8, 3),
            "b": nn.Conv2d(8, 8, 3, stride=2),
            "c": nn.Conv2d(8, 8, 3),
            "d": nn.Conv2d(8, 4, 1),
            "e": nn.Conv2d(4, 8, 5),
        }
    )
    terms = ortho_penalty_per_conv(net)
    assert list(terms) == ["a", "b", "c", "d", "e"]
    for name, term in terms.items():
        assert term.item() == pytest.approx(dense_penalty(net[name]), rel=1e-5)
    assert ortho_penalty(net).item() == pytest.approx(sum(t.item() for t in terms.values()), rel=1e-6)


def test_a_module_without_convolutions_has_no_penalty():
    assert ortho_penalty(nn.Linear(3, 3)).item() == 0


def test_an_unknown_strided_is_refused():
    with pytest.raises(ValueError, match=r"^strided .*published, operator.*'both'"):
        ortho_penalty(nn.Conv2d(4, 4, 3), strided="both")


def test_the_adjoint_decides_which_transposed_convolutions_are_left_out():
    net = nn.ModuleDict(
        {
            "from_rgb": nn.ConvTranspose2d(3, 8, 3),
            "to_rgb": nn.ConvTranspose2d(8, 3, 3),
            "seven": nn.ConvTranspose2d(8, 8, 7),
        }
    )
    assert list(ortho_penalty_per_conv(net)) == ["from_rgb"]
    assert list(ortho_penalty_per_conv(net, everywhere=True)) == ["from_rgb", "to_rgb", "seven"]


def test_skipped_layers_and_layers_that_the_paper_leaves_out():
    body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)))
    net = nn.ModuleDict({"stem": nn.Conv2d(3, 8, 7), "body": body, "head": nn.Conv2d(8, 4, 1)})
    everything = ["stem", "body.0", "body.1.0", "body.1.1", "head"]
    assert list(ortho_penalty_per_conv(net)) == everything[1:]
    assert list(ortho_penalty_per_conv(net, everywhere=True)) == everything
    assert list(ortho_penalty_per_conv(net, skip=["body.1", "stem"], everywhere=True)) == ["body.0", "head"]
    assert list(ortho_penalty_per_conv(net, skip=["body"])) == ["head"]
    assert list(ortho_penalty_per_conv(net, skip=lambda name, m: name == "body.1")) == ["body.0", "head"]
    terms = ortho_penalty_per_conv(net, skip="body.1")
    assert ortho_penalty(net, skip="body.1").item() == pytest.approx(sum(t.item() for t in terms.values()))
    assert OrthoPenalty(net, skip=["body", "head"])().item() == 0
    with pytest.raises(ValueError, match=r"^skip: .*'bodi'.* body\b"):
        ortho_penalty(net, skip=["bodi"])


@pytest.mark.parametrize("skip", [["encoder"], ["backbone"], "backbone", lambda name, module: name == "backbone"])
def test_either_name_skips_a_module_with_two_names(skip):
    net = nn.Module()
    net.encoder = nn.Sequential(nn.Conv2d(4, 4, 3))
    net.backbone = net.encoder
    net.head = nn.Conv2d(4, 4, 1)
    assert list(ortho_penalty_per_conv(net, skip=skip)) == ["head"]
