"""SReLU's and the multiplier's derivatives under torch.func, forward-mode differentiation, autocast and torch.compile.

The expected results use ``max(x, b)`` written with ``torch.where``. Its gradient at ``x == b`` goes to the shift, as
published. Library functions for the same maximum split the gradient there, or give it to the input (torch.maximum, and
torch.clamp, which changed in torch 2.14). After the delta initialisation, such ties are everywhere.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

from isonet import SReLU, build_model, load_cfg
from isonet.models import ISONet, ResMultiplier
from isonet.models.build import init_network_
from isonet.models.isonet import Architecture, BasicTransform
from isonet.models.layers import LayerFactory

CIFAR8 = ["DATASET.NAME", "CIFAR10", "DATASET.NUM_CLASSES", 10, "ISON.DEPTH", 8]
FAMILIES = {
    "ISONet": [],
    "R-ISONet": ["ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.5],
    "ReLU": ["ISON.SReLU", False],
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def network(family: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(load_cfg(None, CIFAR8 + FAMILIES[family]))


def one_block() -> nn.Module:
    """Return an R-ISONet of one block, which has every kind of layer and compiles quickly."""
    torch.manual_seed(0)
    arch = Architecture(BasicTransform, depths=(1,), widths=(16,), stem_width=8, imagenet_stem=False)
    model = ISONet(arch, LayerFactory(shortcuts=True, multiplier=0.5), num_classes=10)
    init_network_(model)
    return model


def chosen(x: Tensor, b: Tensor) -> Tensor:
    """Return the expected result."""
    return torch.where(x <= b, b, x)


LAYER = SReLU(2)


def srelu(x: Tensor, b: Tensor) -> Tensor:
    return functional_call(LAYER, {"srelu_bias": b}, (x,))


def ties(dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs below, at and above the shift of each channel, the shifts, and a gradient of distinct values."""
    x = torch.tensor([-2.0, -1.0, 0.0, -1.0, 0.5, 3.0], dtype=dtype).reshape(1, 2, 1, 3)
    b = torch.tensor([-1.0, 0.5], dtype=dtype).reshape(1, 2, 1, 1)
    return x, b, torch.tensor([1.0, 2, 4, 8, 16, 32], dtype=dtype).reshape(1, 2, 1, 3)


AT_TIES = [0, 0, 4, 0, 0, 32], [1 + 2, 8 + 16]  # gradients of the input and of the shifts


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("compiled", [None, "aot_eager", "inductor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_at_ties(inplace, compiled, dtype):
    torch.compiler.reset()
    x, b, cotangent = ties(torch.float32)
    layer = SReLU(2, inplace=inplace)
    layer.srelu_bias.data = b
    run = torch.compile(layer, fullgraph=True, backend=compiled) if compiled else layer
    x = x.to(dtype).requires_grad_()
    run(x * 1).backward(cotangent.to(dtype))
    assert x.grad.flatten().tolist() == AT_TIES[0]
    assert layer.srelu_bias.grad.flatten().tolist() == AT_TIES[1]


def test_gradient_at_ties_under_autocast():
    """The convolution returns 16 bits, and the shift has 32."""
    conv, layer = nn.Conv2d(2, 2, 1, bias=False), SReLU(2)
    nn.init.dirac_(conv.weight)
    x, b, cotangent = ties(torch.float32)
    layer.srelu_bias.data = b
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(conv(x))
    y.backward(cotangent.bfloat16())
    assert x.grad.flatten().tolist() == AT_TIES[0]
    assert layer.srelu_bias.grad.flatten().tolist() == AT_TIES[1]


def test_gradient_at_ties_under_torch_func():
    x, b, cotangent = ties()

    def weighted(x, b):
        return (srelu(x, b) * cotangent).sum()

    for gradients in (grad(weighted, (0, 1))(x, b), vmap(grad(weighted, (0, 1)), (0, None))(x[None], b)):
        assert gradients[0].flatten().tolist() == AT_TIES[0]
        assert gradients[1].flatten().tolist() == AT_TIES[1]


@pytest.mark.parametrize("no_grad", [False, True])
def test_forward_mode_at_ties(no_grad):
    x, b, _ = ties()
    with torch.set_grad_enabled(not no_grad):
        with forward_ad.dual_level():
            y = SReLU(2).double()(forward_ad.make_dual(x, torch.ones_like(x)))
            assert torch.equal(forward_ad.unpack_dual(y).tangent, (x > -1).double())
        assert torch.equal(jvp(srelu, (x, b), (torch.ones_like(x), torch.zeros_like(b)))[1], (x > b).double())


TWICE = {
    "hessian": lambda f: hessian(f, (0, 1)),
    **{f"{one.__name__} of {two.__name__}": lambda f, one=one, two=two: one(two(f, (0, 1)), (0, 1))
       for one, two in itertools.product((jacfwd, jacrev), repeat=2)},
}  # fmt: skip


@pytest.mark.parametrize("how", TWICE)
def test_second_derivatives_of_compositions(how):
    """Functions before and after SReLU show that nested forward modes do not lose a term."""
    x, b, _ = ties()
    actual, expected = (
        TWICE[how](lambda x, b, f=f: f(f(x.square(), b) ** 3, b.square()).square().sum())(x, b) for f in (srelu, chosen)
    )
    actual, expected = list(itertools.chain(*actual)), list(itertools.chain(*expected))
    assert expected[0].any()  # with respect to the input twice
    assert expected[3].any()  # with respect to the shift twice
    for ours, true in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-12, atol=0)


@pytest.mark.parametrize("f", [srelu, lambda x, b: functional_call(ResMultiplier(), {"scale": b}, (x,))])
def test_forward_mode_of_a_gradient_and_back(f):
    x = torch.randn(2, 2, 3, 3, dtype=torch.double, requires_grad=True)
    b = torch.randn(1, 2, 1, 1, dtype=torch.double, requires_grad=True)
    b = b if f is srelu else torch.randn(1, 1, 1, 1, dtype=torch.double, requires_grad=True)
    check = torch.autograd.gradgradcheck
    assert check(lambda x, b: f(x.square(), b).square(), (x, b), check_fwd_over_rev=True, check_rev_over_rev=True)


def loss_of(net: nn.Module, autocast: bool):
    def loss(weights, image, label):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = functional_call(net, weights, (image[None],))
        return F.cross_entropy(logits.float(), label[None])

    return loss


@every_family
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_of_each_sample(family, autocast):
    net = network(family)
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    actual = vmap(grad(loss_of(net, autocast)), (None, 0, 0))(weights, images, labels)
    for i in range(4):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = net(images[i : i + 1])
        expected = torch.autograd.grad(F.cross_entropy(logits.float(), labels[i : i + 1]), list(net.parameters()))
        for (name, ours), true in zip(actual.items(), expected, strict=True):
            # A multiplier's gradient is a sum that cancels, and the eager one rounds its terms to 16 bits
            rtol = 1e-5 if not autocast else 0.1 if name.endswith("scale") else 1e-2
            assert (ours[i] - true).norm() <= rtol * true.norm() + 1e-7, name


@every_family
def test_ensembles(family):
    nets = [network(family) for _ in range(3)]
    for net in nets:
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.2)
    stacked, buffers = stack_module_state(nets)
    images = torch.randn(2, 3, 16, 16)
    actual = vmap(lambda p, b, x: functional_call(nets[0], (p, b), (x,)), (0, 0, None))(stacked, buffers, images)
    torch.testing.assert_close(actual, torch.stack([net(images) for net in nets]))


@every_family
def test_jacobians_agree_forward_and_backward(family):
    net, image = network(family).double(), torch.randn(1, 3, 8, 8, dtype=torch.double)
    torch.testing.assert_close(jacfwd(net)(image), jacrev(net)(image), rtol=1e-10, atol=1e-14)
    moved = jvp(net, (image,), (image,))[1]
    torch.testing.assert_close(moved, torch.autograd.functional.jvp(net, image, image)[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_of_each_sample_in_a_compiled_function(autocast):
    """A compiled network in the same process does not change this."""
    torch.compiler.reset()
    net, images, labels = one_block(), torch.randn(2, 3, 16, 16), torch.arange(2)
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def each(weights):
        return vmap(grad(loss_of(net, autocast)), (None, 0, 0))(weights, images, labels)

    expected = each(weights)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(images), net(images))
    compiled = torch.compile(each, fullgraph=not autocast, backend="aot_eager")
    for gradients in (each(weights), compiled(weights)):
        for name, true in expected.items():
            assert (gradients[name] - true).norm() <= (0.1 if autocast else 1e-4) * true.norm() + 1e-6, name


@pytest.mark.parametrize("gradients", [True, False])
def test_ties_of_an_exported_network_that_is_trained(gradients):
    """With gradients, SReLU is exported as a choice. Without gradients, for inference, it is one maximum."""
    x, b, cotangent = ties(torch.float32)
    layer = SReLU(2)
    layer.srelu_bias.data = b
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(layer, (x,))
    assert ("maximum" in str(program.graph)) != gradients
    if gradients:
        module, x = program.module(), x.requires_grad_()
        module(x).backward(cotangent)
        assert x.grad.flatten().tolist() == AT_TIES[0]
        assert dict(module.named_parameters())["srelu_bias"].grad.flatten().tolist() == AT_TIES[1]


@every_family
def test_a_traced_script_can_be_saved(family, tmp_path):
    net, images = network(family).eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(net, images), tmp_path / "net.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "net.pt")(images), net(images))
