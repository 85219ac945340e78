"""SReLU and the residual multiplier compared with closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from isonet import SReLU
from isonet.models import ResMultiplier
from isonet.models.layers import LayerFactory, shift_names


def test_srelu_is_the_maximum_with_the_shift():
    layer = SReLU(2)
    x = torch.tensor([-3.0, -1.0, -0.5, 2.0]).reshape(1, 2, 1, 2)
    assert layer(x).flatten().tolist() == [-1.0, -1.0, -0.5, 2.0]


def test_the_gradient_of_a_tie_goes_to_the_shift():
    layer = SReLU(1)
    x = torch.tensor([-2.0, -1.0, 0.0], requires_grad=True)  # below, at, and above the shift
    layer(x.reshape(1, 1, 1, 3)).backward(torch.tensor([1.0, 10.0, 100.0]).reshape(1, 1, 1, 3))
    assert x.grad.tolist() == [0.0, 0.0, 100.0]
    assert layer.srelu_bias.grad.item() == 11.0


def test_srelu_gradient_against_finite_differences():
    layer = SReLU(3).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, b: torch.func.functional_call(layer, {"srelu_bias": b}, (x,)),
                                    (x, layer.srelu_bias))  # fmt: skip


def test_srelu_has_second_derivatives():
    layer = SReLU(2).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).square(), x)


def test_srelu_is_the_same_without_gradients():
    layer = SReLU(3)
    x = torch.randn(4, 3, 5, 5).round(decimals=1)  # with ties
    with torch.no_grad():
        expected = layer(x)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("grad", [True, False])
def test_srelu_propagates_nan(grad):
    with torch.set_grad_enabled(grad):
        assert SReLU(1)(torch.full((1, 1, 1, 1), float("nan"))).isnan().all()


def test_srelu_keeps_the_type_of_its_input():
    assert SReLU(1)(torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_multiplier_scales():
    assert ResMultiplier(0.25)(torch.tensor([4.0])).item() == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_multiplier_keeps_the_type_of_its_input(dtype):
    layer, x = ResMultiplier(0.25), torch.linspace(-3, 3, 50).to(dtype)
    assert torch.equal(layer(x), (x.float() * 0.25).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_of_the_multiplier_is_a_float32_sum(dtype):
    """float16 cannot represent 524,289, and bfloat16 rounds it."""
    layer = ResMultiplier(0.5)
    x = torch.ones(524_289, 1, 1, 1, dtype=dtype, requires_grad=True)
    layer(x).backward(torch.ones_like(x))
    assert layer.scale.grad.item() == 524_289
    assert torch.equal(x.grad, torch.full_like(x, 0.5))


@pytest.mark.parametrize(("srelu", "batch_norm", "bias"), [(1, 0, False), (0, 1, False), (1, 1, False), (0, 0, True)])
def test_convs_have_a_bias_only_with_plain_relu_and_no_batch_norm(srelu, batch_norm, bias):
    layers = LayerFactory(batch_norm=bool(batch_norm), srelu=bool(srelu))
    assert (layers.conv(3, 4, 3).bias is not None) == bias


def test_srelu_saves_its_output_which_the_next_layer_saves_anyway():
    net = torch.nn.Sequential(SReLU(3), torch.nn.Conv2d(3, 3, 3))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        net(torch.randn(2, 3, 8, 8, requires_grad=True))
    large = {t.untyped_storage().data_ptr() for t in saved if t.shape == (2, 3, 8, 8)}
    assert len(large) == 1


@pytest.mark.parametrize("gradients", [True, False])
def test_srelu_in_place_is_the_same_and_needs_no_memory(gradients):
    plain, inplace = SReLU(3), SReLU(3, inplace=True)
    x = torch.randn(2, 3, 5, 5).round(decimals=1).requires_grad_()
    with torch.set_grad_enabled(gradients):
        expected, overwritten = plain(x), x * 1.0
        output = inplace(overwritten)
    assert torch.equal(output, expected)
    assert output.data_ptr() == overwritten.data_ptr()
    if gradients:
        grads = [
            torch.autograd.grad(y.square().sum(), [x, s.srelu_bias]) for y, s in ((expected, plain), (output, inplace))
        ]
        for a, b in zip(*grads, strict=True):
            assert torch.equal(a, b)


ANY_RANK = [
    ((3, 5), 1),
    ((3, 5, 2), 1),
    ((3, 5, 2, 2), 1),
    ((2, 5, 2, 2, 2), 1),
    ((3, 2, 4, 5), -1),
    ((3, 4, 5), 2),
    ((5,), -1),
]


@pytest.mark.parametrize(("shape", "dim"), ANY_RANK)
def test_channels_may_be_any_axis_of_a_tensor_of_any_rank(shape, dim):
    layer = SReLU(5, dim=dim).double()
    nn.init.normal_(layer.srelu_bias)
    along = [1] * len(shape)
    along[dim] = 5
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    assert torch.equal(layer(x), x.maximum(layer.srelu_bias.view(along)))
    assert torch.autograd.gradcheck(
        lambda x, b: functional_call(layer, {"srelu_bias": b}, (x,)),
        (x, layer.srelu_bias),
        check_forward_ad=True,
        check_batched_grad=True,
    )


@pytest.mark.parametrize("shape", [(2, 32, 64), (32, 32), (2, 1, 64, 64), (64,), ()])
def test_another_number_of_channels_is_refused_in_one_sentence(shape):
    with pytest.raises(ValueError, match=r"^SReLU of 64 channels .*dim=") as refusal:
        SReLU(64)(torch.zeros(shape))
    assert "\n" not in str(refusal.value)


def test_layers_do_not_overwrite_their_input_by_default():
    for act in (LayerFactory().act(3), LayerFactory(srelu=False).act(3)):
        x = torch.full((1, 3, 2, 2), -2.0)
        act(x)
        assert x.unique().tolist() == [-2]


def test_shift_names_equal_the_names_of_the_parameters():
    shared = SReLU(4)
    net = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(4, 4, 1), shared), "b": shared, "c": SReLU(2)})
    assert shift_names(net) == {"a.1.srelu_bias", "c.srelu_bias"}
