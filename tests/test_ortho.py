"""The penalty against its definition: the Gram matrix of the convolution written as a dense matrix."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

from benchmarks.baseline import penalty_of_weight
from conftest import REPO
from isonet import ortho_penalty, ortho_penalty_per_conv
from isonet.convs import ConvShape, shape_of
from isonet.fast_penalty import OrthoPenalty
from isonet.fast_penalty.gram import Grams, gram_penalty
from isonet.ortho import STRIDED, kernel_penalty
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
    return dense_distance(conv) / 2


def dense_distance(conv: nn.Module) -> float:
    """|| A A^T - I ||^2 per output position, of the map A that ``conv`` computes on a periodic grid."""
    reach = max((k - 1) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    multiple = math.lcm(*conv.stride)
    size = -(-(2 * reach + 1) // multiple) * multiple  # no offset meets another around the edge
    matrix = dense_matrix(conv, size)
    gram = matrix @ matrix.T
    positions = len(gram) // conv.out_channels
    return ((gram - torch.eye(len(gram))).square().sum() / positions).item()


def dense_operator_penalty(conv: nn.Module) -> float:
    """1/2 (|| A A^T - I ||^2 - max(0, O - s^2 I)) per output position; each group is a map of its own."""
    surplus = conv.out_channels - math.prod(conv.stride) * conv.in_channels
    return (dense_distance(conv) - max(0, surplus)) / 2


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


MORE_OUTPUTS = [
    (2, 4, 20, 3, {"stride": 2}),
    (2, 3, 20, 1, {"stride": 2}),
    (2, 2, 16, 3, {"stride": 2, "dilation": 2}),
    (2, 2, 6, 3, {"stride": 2, "dilation": 2}),
    (1, 3, 8, 4, {"stride": 2, "dilation": 6}),
    (2, 4, 36, 3, {"stride": 2, "groups": 2}),
]


def random_conv(dims, w_in, w_out, kernel, options):
    torch.manual_seed(0)
    conv = CONV[dims](w_in, w_out, kernel, **options)
    nn.init.normal_(conv.weight, std=0.3)
    return conv


@pytest.mark.parametrize(("dims", "w_in", "w_out", "kernel", "options"), CASES + MORE_OUTPUTS)
def test_penalty_is_that_of_the_dense_matrix(dims, w_in, w_out, kernel, options):
    conv = random_conv(dims, w_in, w_out, kernel, options)
    assert ortho_penalty(conv, everywhere=True).item() == pytest.approx(dense_penalty(conv), rel=1e-5)


@pytest.mark.parametrize("strided", STRIDED)
@pytest.mark.parametrize(("dims", "w_in", "w_out", "kernel", "options"), CASES + MORE_OUTPUTS)
def test_definition_and_fast_form_are_the_dense_matrix_in_float64(dims, w_in, w_out, kernel, options, strided):
    conv = random_conv(dims, w_in, w_out, kernel, options).double()
    expected = {"published": dense_penalty, "operator": dense_operator_penalty}[strided](conv)
    values, gradients = [], []
    for penalty in (
        kernel_penalty(conv.weight, shape_of(conv), strided),
        ortho_penalty(conv, strided=strided, everywhere=True),
    ):
        values.append(penalty.item())
        gradients.append(torch.autograd.grad(penalty, conv.weight)[0])
    assert values == pytest.approx([expected] * 2, rel=1e-11)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_the_operators_penalty_where_it_is_known():
    """Delta loses 8 of 16 channels; a kernel whose upper left 2x2 taps are orthonormal rows loses none."""
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
def test_the_operators_penalty_is_0_for_rows_or_columns_that_are_orthonormal(w_in, w_out):
    """A stride equal to the kernel makes the map a matrix of w_out x 4 w_in."""
    torch.manual_seed(0)
    conv = nn.Conv2d(w_in, w_out, 2, stride=2).double()
    conv.weight.data = nn.init.orthogonal_(torch.empty(w_out, 4 * w_in, dtype=torch.double)).view_as(conv.weight)
    assert ortho_penalty(conv, strided="operator").item() < 1e-25


def test_lorth_is_twice_the_operators_penalty():
    """Achour et al. 2022, equation 5: a convolution of the kernel with itself, at offsets that the stride reaches."""
    torch.manual_seed(0)
    for w_in, w_out, stride in ((8, 8, 1), (8, 16, 2), (4, 20, 2), (16, 8, 2)):
        conv = nn.Conv2d(w_in, w_out, 3, stride).double()
        offset = (3 - 1) // stride * stride
        gram = F.conv2d(conv.weight, conv.weight, stride=stride, padding=offset)
        middle = offset // stride
        gram[:, :, middle, middle] -= torch.eye(w_out)
        lorth = gram.square().sum() - max(0, w_out - stride**2 * w_in)
        assert ortho_penalty(conv, strided="operator").item() == pytest.approx(lorth.item() / 2, rel=1e-12)


def test_other_words_for_strided_are_refused():
    with pytest.raises(ValueError, match=r"^strided must be one of published, operator, got 'both'"):
        ortho_penalty(nn.Conv2d(4, 4, 3), strided="both")


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


@pytest.mark.parametrize("strided", STRIDED)
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
    """Whose adjoint it is, an inner product shows: <up(x), y> = <x, conv(y)>."""
    torch.manual_seed(0)
    kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
    up = kind(w_in, w_out, kernel, bias=False, **options).double()
    conv = CONV[dims](w_out, w_in, kernel, bias=False, **options).double()
    conv.weight = up.weight
    x = torch.randn(1, w_in, *[4] * dims, dtype=torch.double)
    y = torch.randn_like(up(x))
    assert (up(x) * y).sum().item() == pytest.approx((x * conv(y)).sum().item(), rel=1e-12)
    expected = {"published": dense_penalty, "operator": dense_operator_penalty}[strided](conv)
    assert ortho_penalty(up, strided=strided).item() == pytest.approx(expected, rel=1e-11)


def test_what_is_left_out_of_a_transposed_convolution_is_asked_of_its_adjoint():
    net = nn.ModuleDict(
        {
            "from_rgb": nn.ConvTranspose2d(3, 8, 3),
            "to_rgb": nn.ConvTranspose2d(8, 3, 3),
            "seven": nn.ConvTranspose2d(8, 8, 7),
        }
    )
    assert list(ortho_penalty_per_conv(net)) == ["from_rgb"]
    assert list(ortho_penalty_per_conv(net, everywhere=True)) == ["from_rgb", "to_rgb", "seven"]


def test_layers_that_are_skipped_and_layers_that_the_paper_leaves_out():
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
    with pytest.raises(ValueError, match=r"^skip: no module is named 'bodi'; did you mean body\?"):
        ortho_penalty(net, skip=["bodi"])


@pytest.mark.parametrize("strided", STRIDED)
class TestSecondDerivatives:
    """Of a network with layers that are computed together, alone, and by the definition."""

    @pytest.fixture
    def case(self, strided):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 3, stride=2), nn.Conv2d(4, 6, 3, groups=2),
            nn.Conv2d(4, 20, 2, stride=2), nn.ConvTranspose2d(6, 4, 2, stride=2),
            nn.Conv2d(4, 4, 2), nn.Conv2d(4, 4, 2),
        ).double()  # fmt: skip
        names = [name for name, p in net.named_parameters() if p.ndim == 4]
        shapes = [shape_of(net[int(name.partition(".")[0])]) for name in names]

        class Penalty(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self):
                return ortho_penalty(self.net, strided=strided)

        def ours(*weights):
            return functional_call(Penalty(), dict(zip((f"net.{n}" for n in names), weights, strict=True)), ())

        def true(*weights):
            return sum(kernel_penalty(w, shape, strided) for w, shape in zip(weights, shapes, strict=True))

        return net, ours, true, [net.get_parameter(name) for name in names]

    def test_gradgradcheck(self, case):
        _, ours, _, weights = case
        assert torch.autograd.gradcheck(ours, weights, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(ours, weights, check_fwd_over_rev=True, fast_mode=True)

    def test_hessian_vector_products_of_a_network(self, case, strided):
        """Through ``create_graph``, as users write them, and by finite differences of the gradient."""
        net, _, _, weights = case
        moves = [torch.randn_like(w) for w in weights]

        def gradient(create_graph):
            return torch.autograd.grad(ortho_penalty(net, strided=strided), weights, create_graph=create_graph)

        along = sum((g * m).sum() for g, m in zip(gradient(True), moves, strict=True))
        found = torch.autograd.grad(along, weights)
        sides = []
        for sign in (1, -2):
            with torch.no_grad():
                for w, m in zip(weights, moves, strict=True):
                    w.add_(m, alpha=sign * 1e-5)
            sides.append(gradient(False))
        for ours, after, before in zip(found, *sides, strict=True):
            torch.testing.assert_close(ours, (after - before) / 2e-5, rtol=1e-5, atol=1e-5)

    def test_torch_func(self, case):
        _, ours, true, weights = case
        weights = tuple(w.detach() for w in weights)
        moves, all_of_them = tuple(torch.randn_like(w) for w in weights), tuple(range(len(weights)))
        batch = [torch.stack([w, 2 * w, w + 1]) for w in weights]

        def twice_forward(f):
            return lambda *w: jvp(lambda *v: jvp(f, v, moves)[1], w, moves)[1]

        for transform, given in (
            (lambda f: grad(f, all_of_them), weights),
            (lambda f: lambda *w: jvp(f, w, moves), weights),
            (lambda f: lambda *w: jvp(grad(f, all_of_them), w, moves)[1], weights),
            (twice_forward, weights),
            (vmap, batch),
            (lambda f: vmap(grad(f, all_of_them)), batch),
        ):
            torch.testing.assert_close(transform(ours)(*given), transform(true)(*given), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("create_graph", [False, True])
    def test_forward_over_reverse(self, case, create_graph):
        """With dual numbers, as ``torch.autograd.forward_ad`` documents it."""
        _, ours, true, weights = case
        moves, found = [torch.randn_like(w) for w in weights], []
        for f in (ours, true):
            with forward_ad.dual_level():
                duals = [
                    forward_ad.make_dual(w.detach().requires_grad_(), m) for w, m in zip(weights, moves, strict=True)
                ]
                gradients = torch.autograd.grad(f(*duals), duals, create_graph=create_graph)
                found.append([forward_ad.unpack_dual(g).tangent for g in gradients])
        for a, b in zip(*found, strict=True):
            assert a.any()
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

    def test_under_saved_tensor_hooks(self, case, strided):
        """Such as those that keep activations on the CPU, and those of activation checkpointing."""
        net, _, _, weights = case
        expected = torch.autograd.grad(ortho_penalty(net, strided=strided), weights)
        with torch.autograd.graph.save_on_cpu():
            found = torch.autograd.grad(ortho_penalty(net, strided=strided), weights, create_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)

    def test_a_function_of_one_weight(self, case, strided):
        _, _, _, weights = case
        conv = nn.Conv2d(4, 6, 3).double()

        def penalty(weight):
            return gram_penalty(Grams(shape_of(conv), strided), [weight]).sum()

        found = torch.func.hessian(penalty)(weights[0].detach())
        expected = torch.func.hessian(lambda w: kernel_penalty(w, shape_of(conv), strided))(weights[0].detach())
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_inside_a_compiled_function():
    torch._dynamo.reset()
    conv = nn.Conv2d(4, 6, 3)
    compiled = torch.compile(lambda weight: gram_penalty(Grams(shape_of(conv)), [weight]).sum())
    found = torch.autograd.grad(compiled(conv.weight), conv.weight)[0]
    torch.testing.assert_close(found, torch.autograd.grad(ortho_penalty(conv), conv.weight)[0])


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("out", "in_"), [(16, 64), (64, 16), (8, 8)])
def test_the_gradient_lies_in_memory_like_the_weight(out, in_, kernel):
    """Else torch copies it, and says so, in each process of several."""
    conv = nn.Conv2d(in_, out, kernel)
    ortho_penalty(conv).backward()
    assert conv.weight.grad.stride() == conv.weight.stride()


def test_a_module_with_two_names_is_skipped_by_either():
    net = nn.Module()
    net.encoder = nn.Sequential(nn.Conv2d(4, 4, 3))
    net.backbone = net.encoder
    net.head = nn.Conv2d(4, 4, 1)
    for skip in (["encoder"], ["backbone"], "backbone", lambda name, module: name == "backbone"):
        assert list(ortho_penalty_per_conv(net, skip=skip)) == ["head"]


def test_what_the_process_allows_follows_its_global_setting_afterwards():
    """The penalty does not write back what it has read, which would then no longer follow."""
    code = (
        "import torch; from isonet import ortho_penalty; ortho_penalty(torch.nn.Conv2d(4, 4, 3)); "
        "torch.backends.fp32_precision = 'tf32'; print(torch.backends.mkldnn.matmul.fp32_precision)"
    )
    found = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPO)},
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert found.stdout.strip() == "tf32"
