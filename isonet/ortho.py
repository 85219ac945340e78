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

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isonet.convs import Conv, is_7x7_stem, named_convs

Overlaps = list[list[tuple[int, int]]]


def ortho_penalty(module: nn.Module) -> Tensor:
    """The penalty of all convolutions of ``module``, summed, without its coefficient.

    A 7x7 stem and convolutions that read 3 channels are left out, as in the paper. Takes 1-d to 3-d
    convolutions with any stride, dilation and groups; returns a scalar, 0 for a module without a
    penalised convolution, in the weights' type but never below float32, whatever autocast says.
    Raises ``ValueError`` for transposed convolutions.
    """
    penalties = [total for _, total in _penalties_by_shape(module)]
    if not penalties:
        return torch.zeros((), device=next((p.device for p in module.parameters()), None))
    return torch.stack([total.sum() for total in penalties]).sum()


def ortho_penalty_per_conv(module: nn.Module) -> dict[str, Tensor]:
    """The terms of ``ortho_penalty``: a scalar for each penalised convolution, in the network's order."""
    terms = {
        name: term for names, total in _penalties_by_shape(module) for name, term in zip(names, total, strict=True)
    }
    return {name: terms[name] for name, _ in penalised_convs(module)}


def penalised_convs(module: nn.Module) -> Iterator[tuple[str, Conv]]:
    """The convolutions that the penalty counts: all but a 7x7 stem and those that read 3 channels."""
    for name, conv in named_convs(module):
        if conv.in_channels != 3 and not is_7x7_stem(conv):
            yield name, conv


def gram_penalty(weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """The penalty of each kernel in a stack: (N, out, in, *kernel) -> (N,)."""
    if weight.shape[2] < weight.shape[1]:
        weight = weight.transpose(1, 2)  # the side with fewer channels; (N, C, D, *kernel) from here on
    taps = weight.flatten(3).movedim(3, 0).contiguous()  # (taps, N, C, D)
    return _GramPenalty.apply(taps, overlaps(tuple(weight.shape[3:]), tuple(stride), tuple(dilation)))


class _GramPenalty(torch.autograd.Function):
    """The sum over offsets and its gradient, in closed form.

    With E[d] = G[d] - [d = 0] I, the gradient at tap t is  sum over all d of 2 E[d] W[t - d];  the half
    of the offsets that is not computed contributes 2 E[d]^T W[t + d].
    """

    @staticmethod
    def forward(ctx: Any, taps: Tensor, pairs_by_offset: Overlaps) -> Tensor:
        penalty = taps.new_zeros(taps.shape[1])
        grad = torch.zeros_like(taps) if ctx.needs_input_grad[0] else None
        for pairs in pairs_by_offset:
            at_zero = pairs[0][0] == pairs[0][1]
            error = _gram(taps, pairs)
            if at_zero:
                error.diagonal(dim1=1, dim2=2).sub_(1)
            penalty += error.square().sum((1, 2)) * (0.5 if at_zero else 1.0)  # twice a half: d and -d
            if grad is None:
                continue
            for shifted, resting in pairs:
                grad[shifted].baddbmm_(error, taps[resting], alpha=2)
                if not at_zero:
                    grad[resting].baddbmm_(error.mT, taps[shifted], alpha=2)
        if grad is not None:
            ctx.save_for_backward(grad)
        return penalty

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_penalty: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_penalty[:, None, None], None


def _gram(taps: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Sum over pairs of taps of one times the other's transpose: (N, C, C)."""
    gram = torch.bmm(taps[pairs[0][0]], taps[pairs[0][1]].mT)
    for shifted, resting in pairs[1:]:
        gram = torch.baddbmm(gram, taps[shifted], taps[resting].mT)
    return gram


@functools.cache
def overlaps(kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Overlaps:
    """For zero and one offset of each opposite pair, the pairs of taps (flat indices) that lie that far apart.

    A tap lies ``dilation`` pixels from its neighbour, and two outputs lie a multiple of ``stride``
    pixels apart, so an offset counts where its length in pixels is such a multiple on every axis.
    """
    positions = {tap: i for i, tap in enumerate(itertools.product(*map(range, kernel)))}
    axes = [
        [d for d in range(1 - k, k) if d * step % jump == 0]
        for k, jump, step in zip(kernel, stride, dilation, strict=True)
    ]
    zero = (0,) * len(kernel)
    plan = []
    for offset in itertools.product(*axes):
        if offset >= zero:  # true of exactly one in each opposite pair
            moved = {tap: tuple(t + d for t, d in zip(tap, offset, strict=True)) for tap in positions}
            plan.append([(positions[moved[tap]], i) for tap, i in positions.items() if moved[tap] in positions])
    return plan


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
            stack = stack.to(torch.promote_types(stack.dtype, torch.float32))
            # Each group is a convolution of its own: (layers * groups, out / groups, in / groups, *kernel)
            stack = stack.reshape(-1, shape[0] // n_groups, *shape[1:])
            penalty = gram_penalty(stack, stride, dilation)
            yield list(convs), penalty.reshape(-1, n_groups).sum(1)
