"""Initialisation: delta, its orthogonal relatives, and the plain normal one that they replace."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from isonet.convs import Conv, Skip, is_7x7_stem, kernels_by_group, named_convs, shape_of


def initialised_convs(module: nn.Module, stem: bool = False, skip: Skip = ()) -> list[tuple[str, Conv]]:
    """The convolutions that an initialisation writes to: all but those in ``skip``; a 7x7 stem only with ``stem``.

    Raises ``ValueError`` for one whose weight or bias is computed anew at each call: it keeps nothing.
    """
    convs = [(name, conv) for name, conv in named_convs(module, skip) if stem or not is_7x7_stem(conv)]
    for name, conv in convs:
        if not {"weight", "bias"} <= {*conv._parameters, *conv._buffers}:
            raise ValueError(
                f"{name or 'the module'} is parametrised (weight_norm, spectral_norm, pruning or the like): "
                "initialise it before that is put on it"
            )
    return convs


@torch.no_grad()
def delta_init_(module: nn.Module, orthogonal: bool = False, *, skip: Skip = ()) -> nn.Module:
    """Make every convolution of ``module`` but a 7x7 stem the identity at its centre tap, in place.

    A rectangular kernel is the identity on the first min(in, out) channels, so that a signal passes
    an untrained network unchanged (Qi et al. 2020, section 3.2). With ``orthogonal`` the centre tap is
    a random matrix with orthonormal rows or columns instead (Xiao et al. 2018, delta-orthogonal).
    Groups are treated as convolutions of their own, and a transposed convolution through its adjoint. Biases
    become 0. Any ``nn.Module`` will do; ``skip`` leaves layers as they are (``isonet.convs.Skip``).
    """
    for _, conv in initialised_convs(module, skip=skip):
        centre: tuple[slice | int, ...] = (slice(None), slice(None), *(k // 2 for k in conv.kernel_size))
        conv.weight.zero_()
        for kernel in kernels_by_group(conv):
            tap = kernel[centre]
            tap.copy_(_random_orthogonal(tap) if orthogonal else torch.eye(*tap.shape))
        if conv.bias is not None:
            conv.bias.zero_()
    return module


@torch.no_grad()
def orthogonal_conv_init_(module: nn.Module, *, skip: Skip = ()) -> nn.Module:
    """Make every convolution of ``module`` but a 7x7 stem a random orthogonal one that uses all its taps, in place.

    Like delta it keeps the length of a signal (with a border: of what that leaves of it), and its penalty is 0; unlike
    delta it mixes channels and neighbours from the start. With a stride it is not orthogonal: an 8 -> 16 convolution of
    stride 2 has singular values between about 0.3 and 1. Along each axis of k taps it is
    a product of k - 1 convolutions ``[P, I - P]`` of two taps, each of which keeps one half of the channels, the
    image of a random projection P, and shifts the other by a pixel (Kautsky and Turcajova 1994; Xiao et al.
    2018, section 2.4). A rectangular kernel is part of a square one. Groups, biases, transposed convolutions and
    ``skip`` as in ``delta_init_``.
    """
    for _, conv in initialised_convs(module, skip=skip):
        for kernel in kernels_by_group(conv):
            w_out, w_in = kernel.shape[:2]
            kernel.copy_(_orthogonal_kernel(max(w_out, w_in), conv.kernel_size)[:w_out, :w_in])
        if conv.bias is not None:
            conv.bias.zero_()
    return module


def _orthogonal_kernel(channels: int, size: tuple[int, ...]) -> Tensor:
    """(channels, channels, *size)"""
    kernel = nn.init.orthogonal_(torch.empty(channels, channels)).view(channels, channels, *[1] * len(size))
    for axis, taps in enumerate(size, start=2):
        for step in range(taps - 1):
            rank = (channels + step % 2) // 2  # odd numbers: the larger half in every other step
            half = nn.init.orthogonal_(torch.empty(channels, channels))[:rank]
            kept = torch.einsum("oi...,ij->oj...", kernel, half.T @ half)
            gap = torch.zeros_like(kept.narrow(axis, 0, 1))
            kernel = torch.cat([kept, gap], axis) + torch.cat([gap, kernel - kept], axis)
    return kernel


@torch.no_grad()
def normal_init_(module: nn.Module, *, skip: Skip = ()) -> nn.Module:
    """Fill every convolution of ``module`` from N(0, 2 / (kernel area * out)), in place; biases become 0.

    A 7x7 stem is filled too. Transposed convolutions and ``skip`` as in ``delta_init_``.
    """
    for _, conv in initialised_convs(module, stem=True, skip=skip):
        fan_out = math.prod(conv.kernel_size) * shape_of(conv).out_channels
        conv.weight.normal_(0, math.sqrt(2 / fan_out))
        if conv.bias is not None:
            conv.bias.zero_()
    return module


def _random_orthogonal(like: Tensor) -> Tensor:
    """A Haar-random matrix of ``like``'s shape with orthonormal rows or columns, whichever fit."""
    return nn.init.orthogonal_(torch.empty(like.shape))
