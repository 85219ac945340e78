"""Initialisations of convolutions: delta, delta-orthogonal, orthogonal, and the normal distribution that they replace.

They initialise any ``nn.Module`` in place and set biases to 0. Each group of a convolution is initialised as a separate
convolution, and a transposed convolution through its adjoint.
"""

import math

import torch
from torch import Tensor, nn

from isonet.convs import Conv, Skip, is_7x7_stem, kernels_by_group, named_convs, shape_of


@torch.no_grad()
def delta_init_(module: nn.Module, orthogonal: bool = False, *, skip: Skip = ()) -> nn.Module:
    """Initialise every convolution of ``module`` except a 7x7 stem with a delta (Qi et al. 2020, section 3.2).

        W[:, :, centre tap] = I,      W[:, :, t] = 0  for every other tap t

    An untrained network then passes its signal unchanged. If the numbers of input and output channels differ, I is
    rectangular: the identity on the first min(in, out) channels.

    orthogonal: whether I is a random matrix with orthonormal rows or columns (delta-orthogonal, Xiao et al. 2018).
    skip: the modules to leave unchanged (``isonet.convs.Skip``).

    Returns ``module``. Raises ``ValueError`` for a parametrised convolution.
    """
    for _, conv in initialised_convs(module, skip=skip):
        centre: tuple[slice | int, ...] = (slice(None), slice(None), *(k // 2 for k in conv.kernel_size))
        conv.weight.zero_()
        for kernel in kernels_by_group(conv):
            tap = kernel[centre]
            tap.copy_(nn.init.orthogonal_(torch.empty(tap.shape)) if orthogonal else torch.eye(*tap.shape))
        _zero_bias(conv)
    return module


@torch.no_grad()
def orthogonal_conv_init_(module: nn.Module, *, skip: Skip = ()) -> nn.Module:
    """Initialise every convolution of ``module`` except a 7x7 stem with a random orthogonal kernel of all taps.

    Along each axis of k taps the kernel is a product of k - 1 convolutions of two taps each,

        [P, I - P],      P = H^T H  a random projection onto half of the channels,

    which keep the image of P and shift the rest by a pixel (Kautsky and Turcajova 1994; Xiao et al. 2018, section 2.4).
    A rectangular kernel is a part of a square one.

    Like the delta initialisation, it preserves the norm of a signal (apart from losses at borders), and its penalty
    is 0. Unlike the delta initialisation, it mixes channels and neighbouring pixels from the start. With a stride it is
    not orthogonal: an 8 -> 16 convolution of stride 2 has singular values between about 0.3 and 1.

    See ``delta_init_`` for ``skip`` and the errors.
    """
    for _, conv in initialised_convs(module, skip=skip):
        for kernel in kernels_by_group(conv):
            w_out, w_in = kernel.shape[:2]
            kernel.copy_(_orthogonal_kernel(max(w_out, w_in), conv.kernel_size)[:w_out, :w_in])
        _zero_bias(conv)
    return module


def _orthogonal_kernel(channels: int, size: tuple[int, ...]) -> Tensor:
    """Return a random orthogonal kernel, (channels, channels, *size)."""
    kernel = nn.init.orthogonal_(torch.empty(channels, channels)).view(channels, channels, *[1] * len(size))
    for axis, taps in enumerate(size, start=2):
        for step in range(taps - 1):
            rank = (channels + step % 2) // 2  # if channels is odd, every other step projects onto the larger half
            half = nn.init.orthogonal_(torch.empty(channels, channels))[:rank]
            kept = torch.einsum("oi...,ij->oj...", kernel, half.T @ half)
            gap = torch.zeros_like(kept.narrow(axis, 0, 1))
            kernel = torch.cat([kept, gap], axis) + torch.cat([gap, kernel - kept], axis)
    return kernel


@torch.no_grad()
def normal_init_(module: nn.Module, *, skip: Skip = ()) -> nn.Module:
    """Initialise every convolution of ``module``, a 7x7 stem included, from a normal distribution.

        W ~ N(0, 2 / (taps * out channels))

    See ``delta_init_`` for ``skip`` and the errors.
    """
    for _, conv in initialised_convs(module, stem=True, skip=skip):
        fan_out = math.prod(conv.kernel_size) * shape_of(conv).out_channels
        conv.weight.normal_(0, math.sqrt(2 / fan_out))
        _zero_bias(conv)
    return module


def initialised_convs(module: nn.Module, stem: bool = False, skip: Skip = ()) -> list[tuple[str, Conv]]:
    """Return the name and module of each convolution to initialise: all except those in ``skip``.

    stem: whether to include a 7x7 stem.

    Raises ``ValueError`` for a convolution whose weight or bias is computed at each call and cannot be written.
    """
    convs = [(name, conv) for name, conv in named_convs(module, skip) if stem or not is_7x7_stem(conv)]
    for name, conv in convs:
        own = {key for key, _ in (*conv.named_parameters(recurse=False), *conv.named_buffers(recurse=False))}
        if "weight" not in own or (conv.bias is not None and "bias" not in own):
            raise ValueError(
                f"{name or 'the module'} is parametrised (weight_norm, spectral_norm, pruning or the like): "
                "initialise it before it is parametrised"
            )
    return convs


def _zero_bias(conv: Conv) -> None:
    if conv.bias is not None:
        conv.bias.zero_()
