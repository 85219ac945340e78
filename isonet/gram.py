"""The sum over Gram matrices that the penalty is made of (formula in ``isonet.ortho``), computed fast.

Three things make it a fraction of a padded convolution of the kernel with itself: G[-d] is the
transpose of G[d], so that half of the offsets is enough; only taps where the kernel and its shifted
copy overlap are multiplied; kernels of one shape are multiplied together. The gradient is in closed
form and falls out of the same Gram matrices: with E[d] = G[d] - [d = 0] I it is, at tap t,

    sum over all d of  2 E[d] W[t - d].

Shapes: N kernels, K taps each, C the channels of the narrower side, D those of the other.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of the largest intermediate result, 128 MiB of float32
LARGEST = 1 << 25


class ConvShape(NamedTuple):
    """What tells one kind of convolution from another."""

    out_channels: int
    in_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def narrow(self) -> int:
        """C"""
        return min(self.out_channels, self.in_channels) // self.groups

    @property
    def wide(self) -> int:
        """D"""
        return max(self.out_channels, self.in_channels) // self.groups

    @property
    def step(self) -> tuple[int, ...]:
        """On each axis, the taps from one offset that counts to the next.

        A tap lies ``dilation`` pixels from its neighbour, and two outputs lie a multiple of ``stride``
        pixels apart: an offset counts where its length in pixels is such a multiple.
        """
        return tuple(s // math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True))


Overlaps = tuple[tuple[tuple[int, int], ...], ...]


@functools.cache
def overlaps(kernel: tuple[int, ...], step: tuple[int, ...]) -> Overlaps:
    """Pairs of taps (flat indices) by their offset: zero, first, and one offset of each opposite pair."""
    positions = {tap: i for i, tap in enumerate(itertools.product(*map(range, kernel)))}
    axes = [[d for d in range(1 - k, k) if d % every == 0] for k, every in zip(kernel, step, strict=True)]
    zero = (0,) * len(kernel)
    plan = []
    for offset in itertools.product(*axes):
        if offset >= zero:  # true of exactly one in each opposite pair
            moved = {tap: tuple(t + d for t, d in zip(tap, offset, strict=True)) for tap in positions}
            plan.append(tuple((positions[moved[tap]], i) for tap, i in positions.items() if moved[tap] in positions))
    return tuple(plan)


def gram_penalty(shape: ConvShape, weights: Sequence[Tensor]) -> Tensor:
    """The penalty of each of ``weights``, (out, in / groups, *kernel) of one ``shape``: (len(weights),).

    In the weights' type but at least float32. Has a first derivative only.
    """
    if not torch.is_grad_enabled():
        weights = [weight.detach() for weight in weights]  # so that no gradient is computed
    return _GramPenalty.apply(shape, *weights)


class _GramPenalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: ConvShape, *weights: Tensor) -> Tensor:
        with full_precision(weights[0].device):
            taps = _stack_taps(shape, weights)
            method = fastest(shape, taps.shape[1], taps.is_cuda)
            penalty, grad = method(taps, shape, any(ctx.needs_input_grad))
        ctx.shape = shape
        ctx.dtype = weights[0].dtype
        if grad is not None:
            ctx.save_for_backward(grad)
        return penalty if shape.groups == 1 else penalty.view(-1, shape.groups).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_penalty: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        # (K, layers, groups, C, D), each layer by its share of the incoming gradient
        grad = grad.unflatten(1, (len(grad_penalty), ctx.shape.groups)) * grad_penalty[:, None, None, None]
        return None, *(_from_taps(ctx.shape, layer).to(ctx.dtype) for layer in grad.unbind(1))


def by_offset(taps: Tensor, shape: ConvShape, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """A product for each pair of taps: the fewest multiplications. (K, N, C, D) -> (N,), and the gradient."""
    penalty = taps.new_zeros(taps.shape[1])
    grad = torch.zeros_like(taps) if with_grad else None
    for pairs in overlaps(shape.kernel, shape.step):
        at_zero = pairs[0][0] == pairs[0][1]
        error = torch.bmm(taps[pairs[0][0]], taps[pairs[0][1]].mT)
        for shifted, resting in pairs[1:]:
            error.baddbmm_(taps[shifted], taps[resting].mT)
        if at_zero:
            error.diagonal(dim1=1, dim2=2).sub_(1)
        penalty += error.square().sum((1, 2)) * (0.5 if at_zero else 1.0)  # twice a half: d and -d
        if grad is None:
            continue
        for shifted, resting in pairs:
            grad[shifted].baddbmm_(error, taps[resting], alpha=2)
            if not at_zero:
                grad[resting].baddbmm_(error.mT, taps[shifted], alpha=2)
    return penalty, grad


def by_one_product(taps: Tensor, shape: ConvShape, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """One product of all taps with all taps: the fewest calls. (K, N, C, D) -> (N,), and the gradient."""
    k, n, c, d = taps.shape
    sum_pairs, offset_of_pair = _pair_tables(shape.kernel, shape.step, taps.dtype, taps.device)
    rows = taps.transpose(0, 1).reshape(n, k * c, d)
    products = torch.bmm(rows, rows.mT).view(n, k, c, k, c).permute(1, 3, 0, 2, 4)
    error = (sum_pairs @ products.reshape(k * k, -1)).view(-1, n, c, c)  # E at zero, first, and at half of the offsets
    error[0].diagonal(dim1=1, dim2=2).sub_(1)
    squares = error.square().sum((2, 3))
    penalty = squares.sum(0) - squares[0] / 2
    if not with_grad:
        return penalty, None
    every = torch.cat([error, error.mT, error.new_zeros(1, n, c, c)])
    toeplitz = every[offset_of_pair].view(k, k, n, c, c).permute(2, 0, 3, 1, 4)  # at taps t, s: E[t - s]
    grad = torch.bmm(toeplitz.reshape(n, k * c, k * c), rows).mul_(2)
    return penalty, grad.view(n, k, c, d).transpose(0, 1)


def by_convolution(taps: Tensor, shape: ConvShape, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Each kernel in a padded convolution with itself: for large kernels. (K, N, C, D) -> (N,), and the gradient."""
    correlate = (F.conv1d, F.conv2d, F.conv3d)[len(shape.kernel) - 1]
    spread = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(shape.kernel) - 1]
    reach = tuple((k - 1) // every * every for k, every in zip(shape.kernel, shape.step, strict=True))
    penalty, grads = [], []
    for kernel in taps.permute(1, 2, 3, 0).unflatten(3, shape.kernel).contiguous():
        error = correlate(kernel, kernel, stride=shape.step, padding=reach)  # (C, C, *offsets)
        error.flatten(2)[:, :, error[0, 0].numel() // 2].diagonal().sub_(1)
        penalty.append(error.square().sum() / 2)
        if with_grad:  # both factors of the product have the same gradient
            grads.append(2 * spread(error, kernel, stride=shape.step, padding=reach))
    grad = torch.stack(grads).flatten(3).permute(3, 0, 1, 2) if with_grad else None
    return torch.stack(penalty), grad


Method = Callable[[Tensor, ConvShape, bool], tuple[Tensor, Tensor | None]]


@functools.cache
def fastest(shape: ConvShape, n: int, cuda: bool) -> Method:
    """Which of the three ways takes the least time for ``n`` kernels, by a model whose rates were measured.

    Seconds for a call, for an element of an intermediate result, for a multiply-accumulate in matrix
    products and in convolutions: of a CPU with 2 cores (``python -m benchmarks.penalty`` shows how well
    the choice does); a GPU's are estimates.
    """
    call, element, product, convolution = (6e-6, 1e-11, 5e-14, 5e-13) if cuda else (15e-6, 5e-9, 2e-11, 3e-11)
    k, c, d = math.prod(shape.kernel), shape.narrow, shape.wide
    plan = overlaps(shape.kernel, shape.step)
    pairs = 3 * sum(map(len, plan)) - k  # one product each, and two in the gradient, at offset zero one
    everything = n * (k * c) ** 2  # elements of the matrix of all taps with all taps
    spots = math.prod(2 * ((size - 1) // every) + 1 for size, every in zip(shape.kernel, shape.step, strict=True))
    seconds = {
        by_offset: (pairs + 4 * len(plan)) * call + pairs * n * c * c * d * product,
        by_one_product: 12 * call + everything * (element + 2 * d * product),
        by_convolution: n * (15 * call + 2 * spots * k * c * c * d * convolution),
    }
    if everything > LARGEST:
        del seconds[by_one_product]
    return min(seconds, key=seconds.__getitem__)


@functools.lru_cache(maxsize=64)
def _pair_tables(
    kernel: tuple[int, ...], step: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(offsets, K K): 1 where a pair of taps belongs to an offset. (K K,): where E of the pair lies in [E, E^T, 0]."""
    k, plan = math.prod(kernel), overlaps(kernel, step)
    sum_pairs = torch.zeros(len(plan), k, k, dtype=dtype)
    offset_of_pair = torch.full((k, k), 2 * len(plan))
    for offset, pairs in enumerate(plan):
        for shifted, resting in pairs:
            sum_pairs[offset, shifted, resting] = 1
            offset_of_pair[resting, shifted] = len(plan) + offset
            offset_of_pair[shifted, resting] = offset  # last: at offset zero both are this
    return sum_pairs.flatten(1).to(device), offset_of_pair.flatten().to(device)


def _stack_taps(shape: ConvShape, weights: Sequence[Tensor]) -> Tensor:
    """(out, in / groups, *kernel) each -> (K, layers * groups, C, D): each group is a convolution of its own."""
    order = (3, 0, 2, 1) if shape.in_channels < shape.out_channels else (3, 0, 1, 2)
    views = [w.detach().unflatten(0, (shape.groups, -1)).flatten(3).permute(order) for w in weights]
    taps = torch.stack(views, dim=1).flatten(1, 2)
    return taps.to(torch.promote_types(taps.dtype, torch.float32))


def _from_taps(shape: ConvShape, taps: Tensor) -> Tensor:
    """The way back, for one layer: (K, groups, C, D) -> (out, in / groups, *kernel)."""
    order = (1, 3, 2, 0) if shape.in_channels < shape.out_channels else (1, 2, 3, 0)
    return taps.permute(order).flatten(0, 1).unflatten(2, shape.kernel)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Neither autocast nor, whatever the process allows for others, products in TF32 (GPUs) or bfloat16 (CPUs)."""
    no_autocast: AbstractContextManager = nullcontext()  # the meta device has none
    if device.type != "meta":
        no_autocast = torch.autocast(device.type, enabled=False)
    before = [(backend, backend.fp32_precision) for backend in _rounding_backends()]
    before_2_9 = None if before else torch.get_float32_matmul_precision()
    for backend, _ in before:
        backend.fp32_precision = "ieee"
    if before_2_9:
        torch.set_float32_matmul_precision("highest")
    try:
        with no_autocast:
            yield
    finally:
        for backend, precision in before:
            backend.fp32_precision = precision
        if before_2_9:
            torch.set_float32_matmul_precision(before_2_9)


def _rounding_backends() -> list[Any]:
    """Where torch 2.9 and later keep what float32 products may be rounded to; none before."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return []
    gpu, cpu = torch.backends.cudnn, torch.backends.mkldnn
    parts = ((torch.backends.cuda, "matmul"), (gpu, "conv"), (cpu, "matmul"), (cpu, "conv"))
    return [getattr(backend, part) for backend, part in parts]
