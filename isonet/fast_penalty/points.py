"""Points at which kernels are evaluated as polynomials, so that the penalty is a few matrix products.

Read a kernel as a polynomial with one variable for each axis, W(z) = sum over taps t of W[t] z^t. Its
Gram matrices (``isonet.ortho``) are the coefficients of

    W(z) W(1/z)^T = sum over offsets d of  G[d] z^d,

so that values at as many points as there are offsets tell all of them. The value at 1/z is the
transpose of that at z, which saves every other product: a 3x3 kernel, whose 25 Gram matrices are the
sums of 81 products of taps, takes 13. With E = G - [d = 0] I, the penalty 1/2 sum_d ||E[d]||^2 is a
quadratic form of the values E(z), with matrix M say, and its gradient at tap t is

    sum over all points z of  2 z^t S(z) W(1/z),      S = M E.

Where only offsets that are multiples of a step count, the taps are dealt into ``step`` phases on each
axis, each a kernel of its own, and the products at a point are summed over the phases.

Shapes: N kernels, K taps each, C the channels of the narrower side, D those of the other.
"""

from __future__ import annotations

import cmath
import functools
import itertools
import math
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isonet.fast_penalty.polynomials import Axes, AxisPoint, factors, outer, pair_up, powers, taps_of_phase, value_row

# For up to three taps: z = 1, and one of each pair z and 1/z. As tangents of half an angle, all of them lie
# almost evenly around the circle, and so round little worse than sums over offsets do. With 2 in place of -2
# it would be 30 times worse.
_REAL: list[AxisPoint] = [(1, 1), (0, 1), (-2, 1)]
# Points on all axes together: 3x3 has 25, 2x2x2 has 27; 3x3x3 would have 125 and round 20 times worse than frequencies
_MOST_REAL = 27
_WORTH_FILLING = 1.5  # taps filled up to a multiple of the step, over taps: from here on too many zeros are multiplied


class Points(Protocol):
    """Points for kernels of one size."""

    rows: int  # values (C, D) that are computed of a kernel

    def penalties(self, taps: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """The penalty of each kernel of ``taps``, (K, N, C, D) -> (N,), and its gradient where asked."""

    def macs(self, c: int, d: int) -> tuple[int, int]:
        """Multiply-accumulates for one kernel: of its penalty, and of its gradient."""


@functools.lru_cache(maxsize=256)
def points_for(kernel: Axes, step: Axes, dtype: torch.dtype, device: torch.device) -> Points:
    """Points for kernels of so many taps, of which the offsets that are multiples of ``step`` count."""
    taps = taps_of_phase(kernel, step)
    real = max(taps) <= len(_REAL) and math.prod(2 * m - 1 for m in taps) <= _MOST_REAL
    filled_up = math.prod(m * s for m, s in zip(taps, step, strict=True)) / math.prod(kernel)
    if math.prod(step) > 1 and (not real or filled_up < _WORTH_FILLING):
        return PhasesSideBySide(kernel, step, dtype, device)
    return RealPoints(kernel, step, dtype, device) if real else Frequencies(kernel, dtype, device)


class RealPoints:
    """The way of Toom and Cook: real points, for kernels of up to three taps a phase.

    With z = a / b, infinity among them, values are homogeneous: a^t b^(taps - 1 - t) in place of z^t.
    """

    def __init__(self, kernel: Axes, step: Axes, dtype: torch.dtype, device: torch.device) -> None:
        make = functools.partial(torch.tensor, dtype=dtype, device=device)
        taps = taps_of_phase(kernel, step)
        grid = pair_up([_REAL[:m] for m in taps])
        self.points = len(grid) // 2 + 1  # with a product: 1, and one of each pair
        left, right, place = factors(grid[: self.points], kernel, step)
        self.products, self.at_one = len(place), place.count(0)
        self.values = make(np.concatenate([left, right[self.at_one :]]))  # (rows, K): what a tap counts in a value
        self.twice_values = 2 * self.values
        self.rows: int = len(self.values)
        # (points, products): 1 where a product belongs to a point; None: each is a point's only one
        self.phases = make(np.eye(self.points)[:, place]) if self.products > self.points else None
        of_gram = np.array([outer(powers(axis, 2 * m - 1) for axis, m in zip(z, taps, strict=True)) for z in grid])
        self.identity = make(of_gram[: self.points, len(grid) // 2])  # (points,): what offset zero counts in a value
        self.form = make(np.linalg.inv(of_gram @ of_gram.T)[: self.points])  # M: (points, all points)
        self.share = make([0.5] + [1.0] * (self.points - 1))  # of a point in the penalty: pairs count twice

    def penalties(self, taps: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        _, n, c, d = taps.shape
        parts = [n * x for x in (self.at_one, self.products - self.at_one, self.products - self.at_one)]
        values = (self.values @ taps.flatten(1)).view(-1, c, d)
        one, left, right = values.split_with_sizes(parts)  # W(1); W(z), W(1/z)

        error = taps.new_empty(2 * self.points - 1, n, c, c)  # E at 1, z, 1/z
        half = error[: self.points]
        products = half if self.phases is None else taps.new_empty(self.products, n, c, c)
        torch.bmm(one, one.mT, out=products.view(-1, c, c)[: len(one)])
        torch.bmm(left, right.mT, out=products.view(-1, c, c)[len(one) :])
        if self.phases is not None:
            torch.mm(self.phases, products.flatten(1), out=half.flatten(1))
        half.diagonal(dim1=2, dim2=3).sub_(self.identity[:, None, None])
        error[self.points :] = half[1:].mT

        slope = (self.form @ error.flatten(1)).view(half.shape)  # S
        penalty = self.share @ (slope * half).sum((2, 3))
        if not with_grad:
            return penalty, None
        del error, half, products  # their memory is enough for the gradient
        if self.phases is not None:
            slope = self.phases.T @ slope.flatten(1)
        at_one, others = slope.view(-1, c, c).split_with_sizes(parts[:2])
        grad = torch.empty_like(values)
        grad_one, grad_left, grad_right = grad.split_with_sizes(parts)
        torch.bmm(at_one, one, out=grad_one)
        torch.bmm(others, right, out=grad_left)
        torch.bmm(others.mT, left, out=grad_right)
        return penalty, (self.twice_values.T @ grad.view(-1, n * c * d)).view(taps.shape)

    def macs(self, c: int, d: int) -> tuple[int, int]:
        evaluation, product = self.values.numel() * c * d, c * c * d
        sums = 0 if self.phases is None else self.phases.numel() * c * c
        value = evaluation + self.products * product + sums + self.form.numel() * c * c
        return value, sums + (2 * self.products - self.at_one) * product + evaluation


class Frequencies:
    """The discrete Fourier transform: points on the unit circle, where 1/z is the conjugate, for large kernels."""

    def __init__(self, kernel: Axes, dtype: torch.dtype, device: torch.device) -> None:
        make = functools.partial(torch.tensor, dtype=dtype, device=device)
        sizes = [2 * k - 1 for k in kernel]
        roots = [[cmath.exp(1j * math.pi * f / size) for f in range(size // 2 + 1)] for size in sizes]
        grid = pair_up([[(root, root.conjugate()) for root in axis] for axis in roots])
        self.points = len(grid) // 2 + 1
        one = (1,) * len(kernel)
        values = np.array([value_row(z, kernel, step=one, phase=(0,) * len(kernel)) for z in grid[: self.points]])
        self.values = make(np.concatenate([values.real, values.imag]))  # (2 points, K)
        self.twice_values = 2 * self.values
        self.rows: int = len(self.values)
        # M is 1 / number of points (Parseval); a pair counts twice
        self.weight = make([1.0] + [2.0] * (self.points - 1))[:, None, None, None] / len(grid)

    def penalties(self, taps: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        _, n, c, d = taps.shape
        real, imag = (self.values @ taps.flatten(1)).view(2, -1, c, d)
        # E = W W^H - I, symmetric in its real part, skew in its imaginary one
        symmetric = torch.bmm(real, real.mT).baddbmm_(imag, imag.mT).view(-1, n, c, c)
        symmetric.diagonal(dim1=2, dim2=3).sub_(1)
        skew = torch.bmm(imag, real.mT).view(-1, n, c, c)
        skew = skew - skew.mT
        penalty = (self.weight * (symmetric.square() + skew.square())).sum((0, 2, 3)) / 2
        if not with_grad:
            return penalty, None

        symmetric, skew = ((self.weight * part).flatten(0, 1) for part in (symmetric, skew))  # S
        grad = taps.new_empty(2, *real.shape)
        torch.bmm(symmetric, real, out=grad[0]).baddbmm_(skew, imag, alpha=-1)
        torch.bmm(symmetric, imag, out=grad[1]).baddbmm_(skew, real)
        return penalty, (self.twice_values.T @ grad.view(-1, n * c * d)).view(taps.shape)

    def macs(self, c: int, d: int) -> tuple[int, int]:
        evaluation, product = self.values.numel() * c * d, self.points * c * c * d
        return evaluation + 3 * product, evaluation + 4 * product


class PhasesSideBySide:
    """Kernels with a step as kernels without one, whose wider side has the channels of all phases.

    Taps are filled up with zeros to a multiple of the step.
    """

    def __init__(self, kernel: Axes, step: Axes, dtype: torch.dtype, device: torch.device) -> None:
        self.kernel, self.step, self.taps = kernel, step, taps_of_phase(kernel, step)
        self.of_phases = points_for(tuple(self.taps), (1,) * len(kernel), dtype, device)
        self.rows: int = self.of_phases.rows * math.prod(step)

    def penalties(self, taps: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        penalty, grad = self.of_phases.penalties(self._split(taps), with_grad)
        return penalty, None if grad is None else self._join(grad)

    def macs(self, c: int, d: int) -> tuple[int, int]:
        return self.of_phases.macs(c, d * math.prod(self.step))

    def _split(self, taps: Tensor) -> Tensor:
        """(K, N, C, D) -> (taps of a phase, N, C, phases D)"""
        axes, (_, n, c, d) = len(self.kernel), taps.shape
        missing = [m * s - k for m, s, k in zip(self.taps, self.step, self.kernel, strict=True)]
        if any(missing):
            sides = [0, 0] * 3 + [side for more in reversed(missing) for side in (0, more)]
            taps = F.pad(taps.view(*self.kernel, n, c, d), sides)
        tap_and_phase = itertools.chain(*zip(self.taps, self.step, strict=True))  # of the first axis, the second ...
        taps = taps.view(*tap_and_phase, n, c, d)
        order = [*range(0, 2 * axes, 2), 2 * axes, 2 * axes + 1, *range(1, 2 * axes, 2), 2 * axes + 2]
        return taps.permute(order).reshape(math.prod(self.taps), n, c, -1)

    def _join(self, taps: Tensor) -> Tensor:
        """The way back."""
        axes, (_, n, c, _) = len(self.kernel), taps.shape
        taps = taps.view(*self.taps, n, c, *self.step, -1)
        pairs = itertools.chain(*((axis, axes + 2 + axis) for axis in range(axes)))
        taps = taps.permute(*pairs, axes, axes + 1, 2 * axes + 2)
        taps = taps.reshape(*(m * s for m, s in zip(self.taps, self.step, strict=True)), n, c, taps.shape[-1])
        return taps[tuple(slice(k) for k in self.kernel)].flatten(0, axes - 1)
