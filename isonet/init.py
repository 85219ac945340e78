"""Initialisation: delta, delta-orthogonal, and the plain normal one that they replace."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from isonet.convs import is_7x7_stem, named_convs


@torch.no_grad()
def delta_init_(module: nn.Module, orthogonal: bool = False) -> nn.Module:
    """Make every convolution of ``module`` but a 7x7 stem the identity at its centre tap, in place.

    A rectangular kernel is the identity on the first min(in, out) channels, so that a signal passes
    an untrained network unchanged (Qi et al. 2020, section 3.2). With ``orthogonal`` the centre tap is
    a random matrix with orthonormal rows or columns instead (Xiao et al. 2018, delta-orthogonal).
    Groups are treated as convolutions of their own. Biases become 0. Any ``nn.Module`` will do.
    """
    for _, conv in named_convs(module):
        if is_7x7_stem(conv):
            continue
        centre: tuple[slice | int, ...] = (slice(None), slice(None), *(k // 2 for k in conv.kernel_size))
        conv.weight.zero_()
        for kernel in conv.weight.chunk(conv.groups):  # (out / groups, in / groups, *kernel), a view
            tap = kernel[centre]
            tap.copy_(_random_orthogonal(tap) if orthogonal else torch.eye(*tap.shape))
        if conv.bias is not None:
            conv.bias.zero_()
    return module


@torch.no_grad()
def normal_init_(module: nn.Module) -> nn.Module:
    """Fill every convolution of ``module`` from N(0, 2 / (kernel area * out)), in place; biases become 0."""
    for _, conv in named_convs(module):
        fan_out = math.prod(conv.kernel_size) * conv.out_channels
        conv.weight.normal_(0, math.sqrt(2 / fan_out))
        if conv.bias is not None:
            conv.bias.zero_()
    return module


def _random_orthogonal(like: Tensor) -> Tensor:
    """A Haar-random matrix of ``like``'s shape with orthonormal rows or columns, whichever fit."""
    return nn.init.orthogonal_(torch.empty(like.shape))
