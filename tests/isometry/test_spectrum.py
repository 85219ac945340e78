"""Singular values of convolutions compared with the dense matrix of the operator."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from conftest import NUMERICS, reference_model
from isonet import delta_init_
from isonet.convs import shape_of
from isonet.isometry import conv_spectrum, feature_sizes, network_extremes
from isonet.isometry.measure import kept_values
from isonet.ortho import kernel_penalty

# out, in, kernel, stride, dilation, groups, height, width
CASES = [
    (4, 4, 3, 1, 1, 1, 6, 6), (4, 4, 3, 1, 1, 1, 5, 7), (6, 3, 3, 1, 1, 1, 6, 5), (3, 6, 3, 2, 1, 1, 6, 8),
    (8, 4, 3, 2, 1, 1, 6, 6), (4, 8, 1, 1, 1, 1, 4, 5), (4, 8, 1, 2, 1, 1, 4, 6), (4, 4, 5, 1, 1, 1, 4, 4),
    (4, 4, 3, 1, 1, 2, 6, 6), (4, 4, 3, 2, 1, 4, 6, 6), (4, 4, 3, 1, 2, 1, 6, 7), (2, 3, 7, 2, 1, 1, 8, 8),
    (4, 2, 3, 3, 1, 1, 9, 6), (4, 4, 2, 1, 1, 1, 3, 3), (2, 2, 3, 1, 1, 1, 1, 1), (2, 2, 3, (1, 2), 1, 1, 3, 4),
]  # fmt: skip


def dense(conv, height, width):
    """Return the matrix of the convolution with circular padding, built tap by tap."""
    (sy, sx), (dy, dx) = conv.stride, conv.dilation
    out, in_ = conv.out_channels, conv.in_channels // conv.groups
    matrix = torch.zeros(out, height // sy, width // sx, conv.in_channels, height, width, dtype=torch.float64)
    for o, i, y, x in itertools.product(range(out), range(in_), range(height // sy), range(width // sx)):
        channel = o // (out // conv.groups) * in_ + i
        for ky, kx in itertools.product(*map(range, conv.kernel_size)):
            place = (y * sy + ky * dy) % height, (x * sx + kx * dx) % width
            matrix[o, y, x, channel, place[0], place[1]] += conv.weight[o, i, ky, kx].double()
    return matrix.flatten(3).flatten(0, 2)


@pytest.mark.parametrize(("out", "in_", "kernel", "stride", "dilation", "groups", "height", "width"), CASES)
@torch.no_grad()
def test_all_singular_values_equal_the_dense_matrixs(out, in_, kernel, stride, dilation, groups, height, width):
    torch.manual_seed(0)
    conv = nn.Conv2d(in_, out, kernel, stride, dilation=dilation, groups=groups, bias=False)
    found = conv_spectrum(conv, height, width)
    expected = torch.linalg.svdvals(dense(conv, height, width))
    torch.testing.assert_close(found.all(), expected, rtol=1e-9, atol=1e-9)
    assert found.largest == pytest.approx(expected[0].item())
    assert found.smallest == pytest.approx(expected[-1].item())
    shares = [0.0, 0.25, 0.5, 1.0]
    rising = expected.flip(0)
    places = [round(share * (len(rising) - 1)) for share in shares]
    assert found.quantiles(shares) == pytest.approx([rising[place].item() for place in places])


def test_the_dense_matrix_is_the_convolution():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, 2, groups=2, bias=False).double()
    x = torch.randn(1, 4, 6, 8, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 2, 0, 2), mode="circular")[..., :7, :9]
    torch.testing.assert_close(conv(padded).flatten(), dense(conv, 6, 8) @ x.flatten())


def test_the_delta_initialisation_is_an_isometry():
    for wide, narrow, stride in ((8, 8, 1), (8, 4, 1), (4, 8, 1), (8, 8, 2), (16, 4, 2)):
        conv = nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False)
        delta_init_(conv)
        found = conv_spectrum(conv, 6, 6)
        assert found.largest == pytest.approx(1)
        if stride == 1 or wide >= 4 * narrow:
            assert len(found.all()) == 36 * min(wide, narrow) or stride > 1
    assert conv_spectrum(nn.Conv2d(4, 4, 3, 2), 7, 5).all().shape == (4 * 4 * 3,)  # the same as for 8 x 6


@pytest.mark.parametrize(("out", "in_"), [(8, 4), (6, 4), (12, 4), (16, 2), (4, 4), (4, 8)])
def test_where_the_published_penalty_is_0_the_squares_sum_up_to_the_values_that_can_be_1(out, in_):
    """2x2 kernels with stride 2 do not overlap, so orthonormal columns or rows have no penalty."""
    torch.manual_seed(0)
    conv = nn.Conv2d(in_, out, 2, 2, bias=False).double()
    with torch.no_grad():
        if out > in_:
            nn.init.orthogonal_(matrix := torch.empty(out * 4, in_, dtype=torch.float64))
            conv.weight.copy_(matrix.view(out, 2, 2, in_).permute(0, 3, 1, 2))
        else:
            nn.init.orthogonal_(conv.weight)
    assert kernel_penalty(conv.weight, shape_of(conv)).item() == pytest.approx(0, abs=1e-12)
    values = torch.linalg.svdvals(dense(conv, 4, 2).detach())
    assert values.square().sum().item() == pytest.approx(kept_values(conv, len(values), published=True))
    delta = nn.Conv2d(in_, out, 3, 2, padding=1, bias=False)
    delta_init_(delta)
    if out >= in_:  # with fewer outputs than inputs, the delta initialisation loses channels
        ones = torch.linalg.svdvals(dense(delta, 4, 2).detach())
        assert (ones - 1).abs().le(1e-9).sum().item() == kept_values(delta, len(ones), published=True)
        assert conv_spectrum(delta, 4, 2).largest_values(int((ones > 0.5).sum())).smallest == pytest.approx(1)


@pytest.mark.parametrize(("out", "in_", "kernel", "stride"), [(8, 4, 1, 2), (8, 4, 3, 2), (18, 2, 2, 3), (4, 8, 1, 2)])
def test_as_many_values_can_be_1_as_the_rank_of_random_weights(out, in_, kernel, stride):
    torch.manual_seed(0)
    conv = nn.Conv2d(in_, out, kernel, stride, bias=False).double()
    matrix = dense(conv, 6, 6).detach()
    assert torch.linalg.matrix_rank(matrix).item() == kept_values(conv, min(matrix.shape), published=False)


def test_feature_sizes_equal_the_networks():
    model = reference_model("cifar10_ISO20")
    sizes = feature_sizes(model, torch.zeros(NUMERICS["cifar10_ISO20"]["input_shape"]))
    assert sizes["stem.conv"] == (32, 32)
    assert sizes["s2.b1.f.a"] == (32, 32)
    assert sizes["s2.b1.f.b"] == (16, 16)
    assert sizes["s3.b3.f.b"] == (8, 8)
    assert len(sizes) == 19


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_spectrum_of_weights_on_a_gpu_is_on_the_cpu(kernel):
    with FakeTensorMode():  # tensors have devices but no data, so no GPU is needed
        conv = nn.Conv2d(4, 8, kernel, device="cuda")
        found = conv_spectrum(conv, 6, 6)
        assert conv.weight.device.type == "cuda"
    assert found.values.device.type == found.counts.device.type == "cpu"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [5, 9, 13, 14, 15, 17, 24, 27])
def test_the_coarse_extremes_are_singular_values_of_the_map(size, kernel, stride):
    torch.manual_seed(4)
    conv = nn.Conv2d(4, 4, kernel, stride)
    truth = conv_spectrum(conv, size, size + 1).all()
    for found in network_extremes(conv, {"": (size, size + 1)}):
        assert (truth - found).abs().min() < 2e-6


def test_the_coarse_extremes_are_within_the_range_if_the_grid_does_not_divide_the_map():
    torch.manual_seed(4)
    conv = nn.Conv2d(4, 4, 3)
    truth = conv_spectrum(conv, 14, 14)
    assert truth.largest == pytest.approx(1.1486, abs=1e-4)
    smallest, largest = network_extremes(conv, {"": (14, 14)})
    assert truth.smallest - 1e-6 <= smallest < largest <= truth.largest + 1e-6


def test_the_coarse_extremes_are_within_the_range_and_exact_with_all_frequencies():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, padding=1))
    sizes = feature_sizes(model, torch.zeros(1, 3, 16, 16))
    spectra = [conv_spectrum(model[0], 16, 16), conv_spectrum(model[2], 16, 16)]
    smallest, largest = min(s.smallest for s in spectra), max(s.largest for s in spectra)
    assert network_extremes(model, sizes, grid=16) == pytest.approx((smallest, largest), rel=1e-4)
    coarse = network_extremes(model, sizes, grid=4)
    assert smallest - 1e-5 <= coarse[0] < coarse[1] <= largest + 1e-5
    assert coarse[1] > 0.9 * largest


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(2, 2, 1), (3, 1, 2), (3, 2, 1)])
def test_a_transposed_convolution_has_the_singular_values_of_its_adjoint(kernel, stride, groups):
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(6, 4, kernel, stride, groups=groups)
    conv = nn.Conv2d(4, 6, kernel, stride, groups=groups)
    conv.weight = up.weight
    for a, b in zip(conv_spectrum(up, 8, 6).all(), conv_spectrum(conv, 8, 6).all(), strict=True):
        assert a.item() == b.item()


def test_the_feature_size_of_a_transposed_convolution_is_its_output_size():
    net = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 4, 2, stride=2))
    assert feature_sizes(net, torch.randn(1, 3, 8, 6)) == {"0": (8, 6), "1": (8, 6)}
    nn.init.orthogonal_(net[1].weight.data.view(4, 16))
    assert conv_spectrum(net[1], 8, 6).all() == pytest.approx(torch.ones(4 * 12))  # an isometry on its input
