"""The fast penalty compared with the definition: rounding, precision, memory layout, and derivatives of every kind."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

from benchmarks.baseline import penalty_of_weight
from conftest import REPO
from isonet import OrthoPenalty, load_cfg, ortho_penalty
from isonet.convs import ConvShape, shape_of
from isonet.fast_penalty.gram import Grams
from isonet.fast_penalty.plan import gram_penalty
from isonet.models.build import assemble
from isonet.ortho import STRIDED, kernel_penalty, penalised_convs
from isonet.precision import full_precision

CONFIGS = sorted((REPO / "configs").rglob("*.yaml"))


def test_every_convolution_of_every_config_uses_the_fast_form():
    """The definition is many times slower."""
    convs = 0
    for path in CONFIGS:
        with torch.device("meta"):
            model = assemble(load_cfg(path))
        for name, conv in penalised_convs(model):
            assert all(Grams(shape_of(conv), strided).fast for strided in STRIDED), (path, name)
            convs += 1
    assert convs > 3000


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(3, 2), (2, 2), (1, 3)])
@pytest.mark.parametrize(("w_in", "w_out"), [(6, 4), (4, 6)])
def test_gradient_against_finite_differences(w_in, w_out, kernel, stride, groups):
    torch.manual_seed(0)
    grams = Grams(ConvShape(w_out, w_in, kernel, (stride, 1), (1, 1), groups))
    weights = [torch.randn(w_out, w_in // groups, *kernel, dtype=torch.double, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *w: gram_penalty(grams, w), weights)


def sum_over_offsets(weight: Tensor, stride: int) -> Tensor:
    """Return the penalty of a square kernel as a sum over offsets, with a Gram matrix for each offset."""
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
    """Compare float32 with float64 near the delta initialisation, where E is a small difference, and far from it."""
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
    expected = sum(kernel_penalty(conv.weight.double(), shape_of(conv)).item() for conv in net)
    assert penalty().item() == pytest.approx(expected, rel=1e-5)


def test_narrow_layers_of_one_shape_are_computed_together_and_wide_ones_alone():
    narrow = OrthoPenalty(nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(5)), nn.Conv2d(8, 8, 3, stride=2)))
    assert [len(convs) for _, convs in narrow.groups] == [5, 1]
    wide = OrthoPenalty(nn.Sequential(*(nn.Conv2d(512, 512, 3) for _ in range(2))))
    assert [len(convs) for _, convs in wide.groups] == [1, 1]


@pytest.fixture
def _settings():
    """Restore the precision of float32 products, including the CPU backend's, which follows the process's setting."""
    own = torch.backends.mkldnn.matmul
    own.fp32_precision = "none"
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = own.fp32_precision = "none"


@pytest.mark.usefixtures("_settings")
class TestPrecision:
    """Products are exact whatever precision the process allows, and the process's settings do not change."""

    def test_a_lower_precision_is_raised_temporarily(self):
        torch.set_float32_matmul_precision("medium")
        with full_precision(torch.device("cpu")):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == "medium"

    def test_the_backend_follows_the_process_afterwards(self):
        """Once assigned, a setting no longer follows the process, even if the assigned value is the current one."""
        ortho_penalty(nn.Conv2d(4, 4, 3))
        torch.backends.fp32_precision = "tf32"
        assert torch.backends.mkldnn.matmul.fp32_precision == "tf32"

    @pytest.mark.parametrize("kernel", [3, 5], ids=["fast", "definition"])
    def test_autocast_changes_nothing(self, kernel):
        torch.manual_seed(0)
        conv = nn.Conv2d(16, 16, kernel)
        expected = ortho_penalty(conv)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ortho_penalty(conv), expected)

    @pytest.mark.parametrize("kernel", [3, 5], ids=["fast", "definition"])
    def test_16_bit_weights_are_summed_in_float32(self, kernel):
        torch.manual_seed(0)
        conv = nn.Conv2d(16, 16, kernel).to(torch.bfloat16)
        penalty = ortho_penalty(conv)
        assert penalty.dtype == torch.float32
        assert penalty.item() == pytest.approx(ortho_penalty(conv.float()).item(), rel=1e-6)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("out", "in_"), [(16, 64), (64, 16), (8, 8)])
def test_the_gradient_has_the_memory_layout_of_the_weight(out, in_, kernel):
    """Otherwise torch copies the gradient, with a warning, on each rank of a distributed run."""
    conv = nn.Conv2d(in_, out, kernel)
    ortho_penalty(conv).backward()
    assert conv.weight.grad.stride() == conv.weight.stride()


def test_inside_a_compiled_function():
    torch.compiler.reset()
    conv = nn.Conv2d(4, 6, 3)
    compiled = torch.compile(lambda weight: gram_penalty(Grams(shape_of(conv)), [weight]).sum())
    gradient = torch.autograd.grad(compiled(conv.weight), conv.weight)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(ortho_penalty(conv), conv.weight)[0])


class Penalty(nn.Module):
    """The penalty of a network as a module, so that ``functional_call`` can replace the weights."""

    def __init__(self, net: nn.Module, strided: str) -> None:
        super().__init__()
        self.net, self.strided = net, strided

    def forward(self) -> Tensor:
        return ortho_penalty(self.net, strided=self.strided)


@pytest.mark.parametrize("strided", STRIDED)
class TestSecondDerivatives:
    """Derivatives for a network whose layers are computed together, alone, and by the definition."""

    @pytest.fixture
    def case(self, strided):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 3, stride=2), nn.Conv2d(4, 6, 3, groups=2),
            nn.Conv2d(4, 20, 2, stride=2), nn.ConvTranspose2d(6, 4, 2, stride=2),
            nn.Conv2d(4, 4, 2), nn.Conv2d(4, 4, 2), nn.Conv1d(4, 4, 5),
        ).double()  # fmt: skip
        names = [name for name, p in net.named_parameters() if p.ndim > 1]
        shapes = [shape_of(net[int(name.partition(".")[0])]) for name in names]

        def ours(*weights):
            return functional_call(
                Penalty(net, strided), dict(zip((f"net.{n}" for n in names), weights, strict=True)), ()
            )

        def true(*weights):
            return sum(kernel_penalty(w, shape, strided) for w, shape in zip(weights, shapes, strict=True))

        return net, ours, true, [net.get_parameter(name) for name in names]

    def test_gradgradcheck(self, case):
        _, ours, _, weights = case
        assert torch.autograd.gradcheck(ours, weights, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(ours, weights, check_fwd_over_rev=True, fast_mode=True)

    def test_hessian_vector_products_of_a_network(self, case, strided):
        """Compare products through ``create_graph``, as users write them, with finite differences of the gradient."""
        net, _, _, weights = case
        moves = [torch.randn_like(w) for w in weights]

        def gradient(create_graph):
            return torch.autograd.grad(ortho_penalty(net, strided=strided), weights, create_graph=create_graph)

        along = sum((g * m).sum() for g, m in zip(gradient(True), moves, strict=True))
        products = torch.autograd.grad(along, weights)
        sides = []
        for sign in (1, -2):
            with torch.no_grad():
                for w, m in zip(weights, moves, strict=True):
                    w.add_(m, alpha=sign * 1e-5)
            sides.append(gradient(False))
        for product, after, before in zip(products, *sides, strict=True):
            torch.testing.assert_close(product, (after - before) / 2e-5, rtol=1e-5, atol=1e-5)

    def test_torch_func(self, case):
        _, ours, true, weights = case
        weights = tuple(w.detach() for w in weights)
        moves, all_of_them = tuple(torch.randn_like(w) for w in weights), tuple(range(len(weights)))
        batch = [torch.stack([w, 2 * w, w + 1]) for w in weights]

        def twice_forward(f):
            return lambda *w: jvp(lambda *v: jvp(f, v, moves)[1], w, moves)[1]

        for transform, inputs in (
            (lambda f: grad(f, all_of_them), weights),
            (lambda f: lambda *w: jvp(f, w, moves), weights),
            (lambda f: lambda *w: jvp(grad(f, all_of_them), w, moves)[1], weights),
            (twice_forward, weights),
            (vmap, batch),
            (lambda f: vmap(grad(f, all_of_them)), batch),
        ):
            torch.testing.assert_close(transform(ours)(*inputs), transform(true)(*inputs), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("create_graph", [False, True])
    def test_forward_over_reverse(self, case, create_graph):
        """Use dual numbers, as in the documentation of ``torch.autograd.forward_ad``."""
        _, ours, true, weights = case
        moves, tangents = [torch.randn_like(w) for w in weights], []
        for f in (ours, true):
            with forward_ad.dual_level():
                duals = [
                    forward_ad.make_dual(w.detach().requires_grad_(), m) for w, m in zip(weights, moves, strict=True)
                ]
                gradients = torch.autograd.grad(f(*duals), duals, create_graph=create_graph)
                tangents.append([forward_ad.unpack_dual(g).tangent for g in gradients])
        for a, b in zip(*tangents, strict=True):
            assert a.any()
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

    def test_under_saved_tensor_hooks(self, case, strided):
        """Offloading of activations to the CPU and activation checkpointing use such hooks."""
        net, _, _, weights = case
        expected = torch.autograd.grad(ortho_penalty(net, strided=strided), weights)
        with torch.autograd.graph.save_on_cpu():
            gradients = torch.autograd.grad(ortho_penalty(net, strided=strided), weights, create_graph=True)
        torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("transform", [torch.func.hessian, torch.func.grad])
    def test_a_function_of_one_weight(self, case, strided, transform):
        _, _, _, weights = case
        shape = shape_of(nn.Conv2d(4, 6, 3))

        def penalty(weight):
            return gram_penalty(Grams(shape, strided), [weight]).sum()

        expected = transform(lambda w: kernel_penalty(w, shape, strided))(weights[0].detach())
        torch.testing.assert_close(transform(penalty)(weights[0].detach()), expected, rtol=1e-10, atol=1e-10)
