r"""The orthogonality penalty (Qi et al. 2020, section 3.2, "orthogonal regularisation").

For a kernel W of C output by D input channels, C <= D (else the two are exchanged), let

    G[d] = sum over taps t of  W[t + d] W[t]^T            (C x C, the Gram matrix at spatial offset d)

for every offset d that is a multiple of the stride. The convolution has orthonormal rows exactly if
G[0] is the identity and every other G[d] is 0, and the penalty is

    1/2 * sum over d of  || G[d] - [d = 0] I ||_F^2.

Since G[-d] is the transpose of G[d], only half of the offsets are computed, and only over the taps
where the kernel and its shifted copy overlap.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from isonet.convs import Conv, is_7x7_stem, named_convs


def ortho_penalty(module: nn.Module) -> Tensor:
    """The penalty of all convolutions of ``module``, summed, without its coefficient.

    A 7x7 stem and convolutions that read 3 channels are left out, as in the paper. Takes 1-d to 3-d
    convolutions with any stride, dilation and groups; returns a scalar in the weights' type, which is
    0 for a module without a penalised convolution. Never computed in reduced precision by autocast.
    Raises ``ValueError`` for transposed convolutions.
    """
    penalties = [total for _, total in _penalties_by_shape(module)]
    if not penalties:
        return torch.zeros((), device=next((p.device for p in module.parameters()), None))
    return torch.stack([total.sum() for total in penalties]).sum()


def ortho_penalty_per_conv(module: nn.Module) -> dict[str, Tensor]:
    """The terms of ``ortho_penalty``: a scalar for each penalised convolution, in the network's order."""
    terms = {name: term for names, total in _penalties_by_shape(module) for name, term in zip(names, total, strict=True)}
    return {name: terms[name] for name, _ in penalised_convs(module)}


def penalised_convs(module: nn.Module) -> Iterator[tuple[str, Conv]]:
    """The convolutions that the penalty counts: all but a 7x7 stem and those that read 3 channels."""
    for name, conv in named_convs(module):
        if conv.in_channels != 3 and not is_7x7_stem(conv):
            yield name, conv


def gram_penalty(weight: Tensor, stride: Sequence[int], dilation: Sequence[int] | None = None) -> Tensor:
    """The penalty of each kernel in a stack: (N, out, in, *kernel) -> (N,)."""
    if weight.shape[2] < weight.shape[1]:
        weight = weight.transpose(1, 2)  # the side with fewer channels; (N, C, D, *kernel) from here on
    kernel = weight.shape[3:]
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    total = weight.new_zeros(weight.shape[0])
    for offset in half_offsets(kernel, stride, dilation or [1] * len(kernel)):
        shifted = _taps(weight, [slice(max(d, 0), k + min(d, 0)) for d, k in zip(offset, kernel, strict=True)])
        resting = _taps(weight, [slice(max(-d, 0), k + min(-d, 0)) for d, k in zip(offset, kernel, strict=True)])
        gram = shifted @ resting.mT
        if any(offset):
            total = total + gram.square().sum((1, 2))  # twice a half: the offset and its opposite
        else:
            total = total + (gram - identity).square().sum((1, 2)) / 2
    return total


def half_offsets(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Offsets in taps at which a kernel meets itself, zero and one of each opposite pair.

    A tap lies ``dilation`` pixels from its neighbour, and two outputs lie a multiple of ``stride``
    pixels apart, so an offset counts where its length in pixels is such a multiple on every axis.
    """
    axes = [
        [d for d in range(1 - k, k) if d * step % jump == 0]
        for k, jump, step in zip(kernel, stride, dilation, strict=True)
    ]
    zero = (0,) * len(kernel)
    return (offset for offset in itertools.product(*axes) if offset >= zero)


def _taps(weight: Tensor, window: Sequence[slice]) -> Tensor:
    """The taps inside ``window``, flattened behind the channels: (N, C, D, *kernel) -> (N, C, D * taps)."""
    return weight[(..., *window)].flatten(2)


def _full_precision(device: torch.device) -> AbstractContextManager:
    """Autocast switched off; the meta device has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _penalties_by_shape(module: nn.Module) -> Iterator[tuple[list[str], Tensor]]:
    """Names and penalties of the convolutions of each shape: layers of one shape are one product."""
    groups: dict[tuple, dict[str, Conv]] = defaultdict(dict)
    for name, conv in penalised_convs(module):
        weight = conv.weight
        groups[weight.shape, conv.groups, conv.stride, conv.dilation, weight.dtype, weight.device][name] = conv
    for (shape, n_groups, stride, dilation, _, device), convs in groups.items():
        with _full_precision(device):
            stack = torch.stack([conv.weight for conv in convs.values()])
            # Each group is a convolution of its own: (layers * groups, out / groups, in / groups, *kernel)
            stack = stack.reshape(-1, shape[0] // n_groups, *shape[1:])
            penalty = gram_penalty(stack, stride, dilation)
            yield list(convs), penalty.reshape(-1, n_groups).sum(1)
