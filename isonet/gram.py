"""The penalty of kernels of one shape as one autograd function, its gradient in closed form.

``isonet.points`` computes both at once from the taps; here weights become taps and gradients of taps
gradients of weights, whatever the layout, the groups and the precision that the process has chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from isonet.points import Points, points_for

# What a value at a point costs beside products, as it goes through memory: fitted to times of 34 shapes of
# ImageNet and CIFAR networks on a CPU, most of which it then tells to a quarter
_MACS_PER_VALUE = 256


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
        """C: channels of the side that has fewer, in one group."""
        return min(self.out_channels, self.in_channels) // self.groups

    @property
    def wide(self) -> int:
        """D: of the other side."""
        return max(self.out_channels, self.in_channels) // self.groups

    @property
    def step(self) -> tuple[int, ...]:
        """On each axis, the taps from one offset that counts to the next.

        A tap lies ``dilation`` pixels from its neighbour, and two outputs lie a multiple of ``stride``
        pixels apart: an offset counts where its length in pixels is such a multiple.
        """
        return tuple(s // math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True))

    def cost(self) -> float:
        """About how long its penalty and gradient take, in multiply-accumulates, to tell long from short ones."""
        points = self.points()
        values = points.rows * self.narrow * self.wide
        return self.groups * (sum(points.macs(self.narrow, self.wide)) + _MACS_PER_VALUE * values)

    def points(self, like: Tensor | None = None) -> Points:
        """Where its kernels are evaluated, in the type and on the device of ``like`` (None: float32, the CPU)."""
        dtype, device = (torch.float32, torch.device("cpu")) if like is None else (like.dtype, like.device)
        return points_for(self.kernel, self.step, dtype, device)


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
            penalty, grad = shape.points(taps).penalties(taps, any(ctx.needs_input_grad))
        ctx.shape = shape
        ctx.dtype = weights[0].dtype
        if grad is not None:
            ctx.save_for_backward(grad)
        return penalty if shape.groups == 1 else penalty.view(-1, shape.groups).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_penalty: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        layers, groups = len(grad_penalty), ctx.shape.groups
        # (K, layers, groups, C, D), each layer by its share of the incoming gradient
        grad = grad.reshape(-1, layers, groups, *grad.shape[2:]) * grad_penalty.view(-1, 1, 1, 1)
        return None, *(_from_taps(ctx.shape, layer).to(ctx.dtype) for layer in grad.unbind(1))


def _stack_taps(shape: ConvShape, weights: Sequence[Tensor]) -> Tensor:
    """(out, in / groups, *kernel) each -> (K, layers * groups, C, D): each group is a convolution of its own."""
    by_group = (shape.groups, shape.out_channels // shape.groups, shape.in_channels // shape.groups, -1)
    order = (3, 0, 2, 1) if shape.in_channels < shape.out_channels else (3, 0, 1, 2)
    taps = torch.cat([weight.detach().reshape(by_group).permute(order) for weight in weights], dim=1)
    return taps.to(torch.promote_types(taps.dtype, torch.float32))


def _from_taps(shape: ConvShape, taps: Tensor) -> Tensor:
    """The way back, for one layer: (K, groups, C, D) -> (out, in / groups, *kernel)."""
    order = (1, 3, 2, 0) if shape.in_channels < shape.out_channels else (1, 2, 3, 0)
    flat = taps.permute(order).reshape(-1)  # first, lest axes of length 1 keep strides that no weight has
    return flat.view(shape.out_channels, -1, *shape.kernel)


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
