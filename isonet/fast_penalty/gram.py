"""The penalty of kernels of one shape as one autograd function, with its gradient in closed form.

``points`` computes both at once from the taps. This module turns weights into taps, and gradients of taps into
gradients of weights, for any memory layout, any groups and any precision that the process has chosen. The definition
(``isonet.ortho.kernel_penalty``) computes second derivatives, ``torch.func``, forward-mode differentiation, and the
kernels that have no points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isonet.convs import ConvShape
from isonet.fast_penalty.points import Points, has_points, points_for
from isonet.ortho import OPERATOR, PUBLISHED, kernel_penalty, unreachable
from isonet.precision import full_precision
from isonet.private_torch import transforms_active

# The cost of a value at a point besides products, since it passes through memory. Fitted to times of 34 shapes of
# ImageNet and CIFAR networks on a CPU; it predicts most of them to within a quarter
_MACS_PER_VALUE = 256
_COMPLEX_MACS = 4  # real multiply-accumulates in a complex one


class Grams(NamedTuple):
    """The Gram matrices of one shape of convolution, as the penalty needs them."""

    conv: ConvShape
    strided: str = PUBLISHED

    @property
    def exchanged(self) -> bool:
        """Whether outputs and inputs are exchanged, so that the Gram matrices are those of the narrower side."""
        inputs = self.conv.in_channels * (math.prod(self.conv.step) if self.strided == OPERATOR else 1)
        return inputs < self.conv.out_channels

    @property
    def fast(self) -> bool:
        """Whether points compute the penalty, rather than the definition.

        They do for the kernels of all configs: up to three taps on each of two axes. The definition computes larger
        kernels, most with three axes, and the columns of an operator with a stride, which mix the kernel's phases.
        """
        mixed = self.strided == OPERATOR and self.exchanged and math.prod(self.conv.step) > 1
        return not mixed and has_points(self.conv.kernel, self.conv.step)

    @property
    def rows(self) -> int:
        """C: channels, in one group, of the side whose Gram matrices these are."""
        return (self.conv.in_channels if self.exchanged else self.conv.out_channels) // self.conv.groups

    @property
    def columns(self) -> int:
        """D: channels, in one group, of the other side."""
        return (self.conv.out_channels if self.exchanged else self.conv.in_channels) // self.conv.groups

    @property
    def values(self) -> int:
        """Numbers in the values of one kernel at all points, or frequencies: the largest intermediate result."""
        at = self.points().rows if self.fast else math.prod(2 * k - 1 for k in self.conv.kernel)
        return at * self.conv.groups * self.rows * self.columns

    def cost(self) -> float:
        """Return about how long the penalty and its gradient take, in multiply-accumulates, to compare shapes."""
        if self.fast:
            products = self.conv.groups * sum(self.points().macs(self.rows, self.columns))
        else:
            products = 3 * _COMPLEX_MACS * self.values * self.rows  # one product forward, two backward
        return products + _MACS_PER_VALUE * self.values

    def points(self, like: Tensor | None = None) -> Points:
        """Return where the kernels are evaluated, in the type and on the device of ``like``, or float32 on the CPU."""
        dtype, device = (torch.float32, torch.device("cpu")) if like is None else (like.dtype, like.device)
        return points_for(self.conv.kernel, self.conv.step, dtype, device)


def gram_penalty(grams: Grams, weights: Sequence[Tensor]) -> Tensor:
    """Return the penalty of each of ``weights``, (out, in / groups, *kernel) of one shape: (len(weights),).

    The result has the weights' type, but at least float32.
    """
    if transforms_active() or not grams.fast:
        return _by_definition(grams, *weights)
    with_grad = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    return _GramPenalty.apply(grams, with_grad, *weights)[0]


def _by_definition(grams: Grams, *weights: Tensor) -> Tensor:
    return torch.stack([kernel_penalty(weight, *grams) for weight in weights])


class _GramPenalty(torch.autograd.Function):
    """Returns the penalties, and for the backward pass their gradients by taps, (K, layers * groups, C, D).

    ``points`` computes the first derivative. If it is differentiated again, the definition computes both.
    """

    @staticmethod
    def forward(grams: Grams, with_grad: bool, *weights: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision(weights[0].device):
            taps = _stack_taps(grams, weights)
            penalty, grad = grams.points(taps).penalties(taps, with_grad)
        penalty = penalty.view(len(weights), -1).sum(1)
        if grams.strided == OPERATOR:
            penalty += unreachable(grams.conv)
        return penalty, grad if grad is not None else taps.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.grams, _, *weights = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *weights)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad, *weights = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return None, None, *_differentiable_gradients(ctx.grams, weights, cotangent)
        # (K, layers, groups, C, D), each layer multiplied by its incoming gradient
        grad = grad.reshape(-1, len(weights), ctx.grams.conv.groups, *grad.shape[2:]) * cotangent.view(-1, 1, 1, 1)
        return None, None, *(_from_taps(ctx.grams, g, w) for g, w in zip(grad.unbind(1), weights, strict=True))


def _differentiable_gradients(grams: Grams, weights: Sequence[Tensor], cotangent: Tensor) -> list[Tensor | None]:
    """Return the definition's gradients as functions of the weights and of the incoming gradient, (layers,)."""
    wanted = [weight for weight in weights if weight.requires_grad]
    gradients = iter(torch.autograd.grad(_by_definition(grams, *weights), wanted, cotangent, create_graph=True))
    return [_laid_out_like(weight, next(gradients)) if weight.requires_grad else None for weight in weights]


def _laid_out_like(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return ``gradient`` in the type and memory layout of ``weight``, as a fused optimizer requires."""
    return torch.empty_like(weight, requires_grad=False).copy_(gradient)


def _stack_taps(grams: Grams, weights: Sequence[Tensor]) -> Tensor:
    """(out, in / groups, *kernel) each -> (K, layers * groups, C, D): each group is a convolution of its own."""
    shape = grams.conv
    by_group = (shape.groups, shape.out_channels // shape.groups, shape.in_channels // shape.groups, -1)
    order = (3, 0, 2, 1) if grams.exchanged else (3, 0, 1, 2)
    taps = torch.cat([weight.detach().reshape(by_group).permute(order) for weight in weights], dim=1)
    return taps.to(torch.promote_types(taps.dtype, torch.float32))


def _from_taps(grams: Grams, taps: Tensor, weight: Tensor) -> Tensor:
    """The inverse, for one layer: (K, groups, C, D) -> (out, in / groups, *kernel), laid out like ``weight``."""
    order = (1, 3, 2, 0) if grams.exchanged else (1, 2, 3, 0)
    return _laid_out_like(weight, taps.permute(order).flatten(0, 1).unflatten(2, grams.conv.kernel))
