"""Initialisation of any module's convolutions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isonet import delta_init_, ortho_penalty
from isonet.init import normal_init_, orthogonal_conv_init_


@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_delta_passes_the_signal_unchanged(conv):
    layer = delta_init_(conv(4, 4, 3, padding=1))
    x = torch.randn(2, 4, *[5] * (layer.weight.ndim - 2))
    torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize(("w_in", "w_out"), [(3, 8), (8, 3)])
def test_a_rectangular_delta_passes_the_first_channels(w_in, w_out):
    layer = delta_init_(nn.Conv2d(w_in, w_out, (3, 5), padding=(1, 2)))
    x = torch.randn(2, w_in, 6, 6)
    y = layer(x)
    torch.testing.assert_close(y[:, :3], x[:, :3])
    assert y[:, 3:].count_nonzero() == 0


def test_groups_are_separate_convolutions():
    layer = delta_init_(nn.Conv2d(6, 6, 3, padding=1, groups=3))
    x = torch.randn(1, 6, 4, 4)
    torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize(("w_in", "w_out"), [(6, 6), (4, 8), (8, 4)])
def test_delta_orthogonal_has_orthonormal_rows_or_columns(w_in, w_out):
    torch.manual_seed(0)
    layer = delta_init_(nn.Conv2d(w_in, w_out, 3), orthogonal=True)
    tap = layer.weight[:, :, 1, 1]
    gram = tap @ tap.T if w_out <= w_in else tap.T @ tap
    torch.testing.assert_close(gram, torch.eye(min(w_in, w_out)), atol=1e-6, rtol=0)
    assert layer.weight.count_nonzero() == tap.numel()


@pytest.mark.parametrize(("conv", "size"), [(nn.Conv1d, 4), (nn.Conv2d, (3, 5)), (nn.Conv3d, 3), (nn.Conv2d, 1)])
@pytest.mark.parametrize(("w_in", "w_out", "groups"), [(5, 5, 1), (3, 8, 1), (8, 4, 2)])
def test_an_orthogonal_convolution_keeps_lengths_on_a_map_without_a_border(conv, size, w_in, w_out, groups):
    """The lengths of the signal, or of the backpropagated gradient if there are fewer outputs than inputs."""
    torch.manual_seed(0)
    layer = orthogonal_conv_init_(conv(w_in, w_out, size, groups=groups, bias=False).double())
    x = torch.randn(2, w_in, *[6] * (layer.weight.ndim - 2), dtype=torch.float64, requires_grad=True)
    around = [(0, k - 1) for k in reversed(layer.kernel_size)]
    y = layer(F.pad(x, [pixels for pair in around for pixels in pair], mode="circular"))
    lengths = y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1)
    if w_out < w_in:
        back = torch.randn_like(y)
        lengths = torch.autograd.grad(y, x, back)[0].flatten(1).norm(dim=1), back.flatten(1).norm(dim=1)
    torch.testing.assert_close(*lengths, rtol=1e-5, atol=0)
    assert layer.weight.count_nonzero() == layer.weight.numel()
    assert ortho_penalty(layer) < 1e-8 or w_in == 3  # the penalty leaves out layers with 3 channels


def test_a_depthwise_orthogonal_convolution_is_the_identity_up_to_signs():
    """A depthwise convolution mixes no channels, and the image must not shift."""
    layer = orthogonal_conv_init_(nn.Conv2d(6, 6, 3, padding=1, groups=6))
    x = torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(layer(x).abs(), x.abs())


def test_the_7x7_stem_is_left_unchanged():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 64, 7)
    before = layer.weight.clone()
    assert torch.equal(delta_init_(layer).weight, before)
    assert torch.equal(orthogonal_conv_init_(layer).weight, before)


def test_normal_has_the_fan_out_variance_and_no_bias():
    torch.manual_seed(0)
    layer = normal_init_(nn.Conv2d(64, 128, 3))
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert layer.bias.count_nonzero() == 0


@pytest.mark.parametrize("orthogonal", [False, True])
def test_a_transposed_delta_is_the_adjoint_of_a_delta(orthogonal):
    """The transposed convolution writes 4 of 6 channels to every other pixel, and its adjoint reads them."""
    up = delta_init_(nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), orthogonal)
    x = torch.randn(1, 4, 5, 5)
    y = up(x)
    assert y[:, :, 1::2].count_nonzero() == y[:, :, :, 1::2].count_nonzero() == 0
    if not orthogonal:
        assert torch.equal(y[:, :4, ::2, ::2], x)
    torch.testing.assert_close(y.norm(), x.norm())
    torch.testing.assert_close(F.conv2d(y, up.weight, stride=2, padding=1), x)
    assert up.bias.count_nonzero() == 0


def test_a_u_net_passes_its_signal_up_and_down():
    down, up = nn.Conv2d(4, 8, 2, stride=2), nn.ConvTranspose2d(8, 4, 2, stride=2)
    net = delta_init_(nn.Sequential(down, up))
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(net(net(x)), net(x))  # a projection
    assert ortho_penalty(net).item() == 0


def test_normal_variance_of_a_transposed_convolution_is_that_of_its_adjoint():
    torch.manual_seed(0)
    layer = normal_init_(nn.ConvTranspose2d(128, 64, 3))
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)


@pytest.mark.parametrize("init", [delta_init_, orthogonal_conv_init_, normal_init_])
@pytest.mark.parametrize("skip", [["b"], lambda name, module: name.startswith("b")])
def test_layers_that_are_skipped_keep_their_weights(init, skip):
    net = nn.ModuleDict({"a": nn.Conv2d(4, 4, 3), "b": nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3))})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    init(net, skip=skip)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("b"), name


NORMED = [
    nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm,
    pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")),
]  # fmt: skip


@pytest.mark.parametrize("normed", NORMED)
@pytest.mark.parametrize("init", [delta_init_, orthogonal_conv_init_, normal_init_])
def test_parametrised_convolutions_are_refused_by_name_before_any_is_changed(init, normed):
    first = nn.Conv2d(4, 4, 3)
    before = first.weight.clone()
    with pytest.raises(ValueError, match=r"^1 .*parametrised"):
        init(nn.Sequential(first, normed(nn.Conv2d(4, 4, 3))))
    assert torch.equal(first.weight, before)
