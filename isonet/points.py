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
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

Axes = tuple[int, ...]  # a whole number for each axis
# On one axis (a, b) stands for z = a / b, so that (b, a) is 1/z and (1, 0) infinity: of m taps, tap t counts
# a^t b^(m - 1 - t)
AxisPoint = tuple[complex, complex]
Point = tuple[AxisPoint, ...]

# For up to three taps: z = 1, and one of each pair z and 1/z. As tangents of half an angle, all of them lie
# almost evenly around the circle, and so round no worse than sums over offsets do. With 2 in place of -2 it
# would be 30 times worse.
_REAL: list[AxisPoint] = [(1, 1), (0, 1), (-2, 1)]
_MOST_REAL = 27  # points on all axes together; with more, the rounding on one axis is felt on another


@functools.lru_cache(maxsize=256)
def points_for(kernel: Axes, step: Axes, dtype: torch.dtype, device: torch.device) -> RealPoints | Frequencies:
    """Points for kernels of so many taps, of which the offsets that are multiples of ``step`` count."""
    taps = _taps_of_phase(kernel, step)
    few = max(taps) <= len(_REAL) and math.prod(2 * m - 1 for m in taps) <= _MOST_REAL
    return (RealPoints if few else Frequencies)(kernel, step, dtype, device)


class RealPoints:
    """The way of Toom and Cook: real points, for kernels of up to three taps a phase."""

    def __init__(self, kernel: Axes, step: Axes, dtype: torch.dtype, device: torch.device) -> None:
        make = functools.partial(torch.tensor, dtype=dtype, device=device)
        taps = _taps_of_phase(kernel, step)
        grid = _grid([_REAL[:m] for m in taps])
        self.points = len(grid) // 2 + 1  # with a product: 1, and one of each pair
        left, right, point = _factors(grid[: self.points], kernel, step)
        self.products, self.at_one = len(point), point.count(0)
        self.values = make(np.concatenate([left, right[self.at_one :]]))  # (rows, K): what a tap counts in a value
        # (points, products): 1 where a product belongs to a point; None: each is a point's only one
        self.phases = make(np.eye(self.points)[:, point]) if self.products > self.points else None
        of_gram = np.array([_outer(_powers(axis, 2 * m - 1) for axis, m in zip(z, taps, strict=True)) for z in grid])
        self.identity = make(of_gram[: self.points, len(grid) // 2])  # (points,): what offset zero counts in a value
        self.form = make(np.linalg.inv(of_gram @ of_gram.T)[: self.points])  # M: (points, all points)
        self.share = make([0.5] + [1.0] * (self.points - 1))  # of a point in the penalty: pairs count twice

    def penalties(self, taps: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """The penalty of each kernel of ``taps``, (K, N, C, D) -> (N,), and its gradient where asked."""
        _, n, c, d = taps.shape
        parts = [n * x for x in (self.at_one, self.products - self.at_one, self.products - self.at_one)]
        values = (self.values @ taps.flatten(1)).view(-1, c, d)
        one, left, right = values.split(parts)  # W(1); W(z), W(1/z)

        error = taps.new_empty(2 * self.points - 1, n, c, c)  # E at 1, z, 1/z
        half = error[: self.points]
        products = half if self.phases is None else taps.new_empty(self.products, n, c, c)
        for out, a, b in zip(products.flatten(0, 1).split(parts[:2]), (one, left), (one, right), strict=True):
            torch.bmm(a, b.mT, out=out)
        if self.phases is not None:
            torch.mm(self.phases, products.flatten(1), out=half.flatten(1))
        half.diagonal(dim1=2, dim2=3).sub_(self.identity[:, None, None])
        error[self.points :] = half[1:].mT

        slope = (self.form @ error.flatten(1)).view(half.shape)  # S
        penalty = self.share @ (slope * half).sum((2, 3))
        if not with_grad:
            return penalty, None
        if self.phases is not None:
            slope = self.phases.T @ slope.flatten(1)
        at_one, others = slope.view(-1, c, c).split(parts[:2])
        grad = torch.empty_like(values)
        for out, a, b in zip(grad.split(parts), (at_one, others, others.mT), (one, right, left), strict=True):
            torch.bmm(a, b, out=out)
        return penalty, (2 * self.values.T @ grad.view(-1, n * c * d)).view(taps.shape)

    def macs(self, c: int, d: int) -> tuple[int, int]:
        """Multiply-accumulates for one kernel: of its penalty, and of its gradient."""
        evaluation, product = self.values.numel() * c * d, c * c * d
        sums = 0 if self.phases is None else self.phases.numel() * c * c
        value = evaluation + self.products * product + sums + self.form.numel() * c * c
        return value, sums + (2 * self.products - self.at_one) * product + evaluation


class Frequencies:
    """The discrete Fourier transform: points on the unit circle, where 1/z is the conjugate, for all other kernels."""

    def __init__(self, kernel: Axes, step: Axes, dtype: torch.dtype, device: torch.device) -> None:
        make = functools.partial(torch.tensor, dtype=dtype, device=device)
        sizes = [2 * m - 1 for m in _taps_of_phase(kernel, step)]
        roots = [[cmath.exp(1j * math.pi * f / size) for f in range(size // 2 + 1)] for size in sizes]
        grid = _grid([[(root, root.conjugate()) for root in axis] for axis in roots])
        self.points = len(grid) // 2 + 1
        rows, _, point = _factors(grid[: self.points], kernel, step)
        self.phases = point.count(0)  # with taps, and so at each point
        self.values = make(np.concatenate([rows.real, rows.imag]))  # (2 rows, K)
        # M is 1 / number of points (Parseval); a pair counts twice
        self.weight = make([1.0] + [2.0] * (self.points - 1))[:, None, None, None] / len(grid)

    def penalties(self, taps: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """The penalty of each kernel of ``taps``, (K, N, C, D) -> (N,), and its gradient where asked."""
        _, n, c, d = taps.shape
        real, imag = (self.values @ taps.flatten(1)).view(2, -1, c, d)
        # E = W W^H - I: symmetric in its real part, skew in its imaginary one
        symmetric = torch.bmm(real, real.mT).baddbmm_(imag, imag.mT).view(-1, self.phases, n, c, c).sum(1)
        symmetric.diagonal(dim1=2, dim2=3).sub_(1)
        skew = torch.bmm(imag, real.mT).view(-1, self.phases, n, c, c).sum(1)
        skew = skew - skew.mT
        penalty = (self.weight * (symmetric.square() + skew.square())).sum((0, 2, 3)) / 2
        if not with_grad:
            return penalty, None

        symmetric, skew = (self._at_each_phase(self.weight * part) for part in (symmetric, skew))
        grad = taps.new_empty(2, *real.shape)
        torch.bmm(symmetric, real, out=grad[0]).baddbmm_(skew, imag, alpha=-1)
        torch.bmm(symmetric, imag, out=grad[1]).baddbmm_(skew, real)
        return penalty, (2 * self.values.T @ grad.view(-1, n * c * d)).view(taps.shape)

    def _at_each_phase(self, slope: Tensor) -> Tensor:
        """(points, N, C, C) -> (points * phases * N, C, C)"""
        return slope[:, None].expand(-1, self.phases, -1, -1, -1).flatten(0, 2)

    def macs(self, c: int, d: int) -> tuple[int, int]:
        """Multiply-accumulates for one kernel: of its penalty, and of its gradient."""
        evaluation, product = self.values.numel() * c * d, self.points * self.phases * c * c * d
        return evaluation + 3 * product, evaluation + 4 * product


def _taps_of_phase(kernel: Axes, step: Axes) -> list[int]:
    """On each axis the taps of the longest phase."""
    return [-(-k // s) for k, s in zip(kernel, step, strict=True)]


def _grid(axes: Sequence[Sequence[AxisPoint]]) -> list[Point]:
    """All points, of axes that give 1 and one of each pair: 1, one of each pair, in the same order the others."""
    one, *others = itertools.product(*([*axis, *((b, a) for a, b in axis[1:])] for axis in axes))
    half: dict[Point, None] = {}
    for z in others:
        if _inverse(z) not in half:
            half[z] = None
    return [one, *half, *map(_inverse, half)]


def _inverse(z: Point) -> Point:
    return tuple((b, a) for a, b in z)


def _factors(points: Sequence[Point], kernel: Axes, step: Axes) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The factors W(z) and W(1/z) of all products, as what each tap counts in them, (products, K), and which
    point each belongs to. Every phase has a product at a point, but where it vanishes."""
    left, right, point = [], [], []
    for (i, z), phase in itertools.product(enumerate(points), itertools.product(*map(range, step))):
        row, inverse_row = (_row(at, kernel, step, phase) for at in (z, _inverse(z)))
        if row.any() and inverse_row.any():
            left.append(row)
            right.append(inverse_row)
            point.append(i)
    return np.array(left), np.array(right), point


def _row(z: Point, kernel: Axes, step: Axes, phase: Axes) -> np.ndarray:
    """What each tap counts in the value of ``phase`` at ``z``: (K,)."""
    axes = []
    for point, k, every, first in zip(z, kernel, step, phase, strict=True):
        powers = _powers(point, -(-k // every))
        axis = np.zeros(k, powers.dtype)
        axis[first::every] = powers[: len(axis[first::every])]
        axes.append(axis)
    return _outer(axes)


def _powers(point: AxisPoint, size: int) -> np.ndarray:
    a, b = point
    return np.array([a**t * b ** (size - 1 - t) for t in range(size)])


def _outer(axes: Iterable[np.ndarray]) -> np.ndarray:
    """What holds on each axis, for every tap or offset of all axes."""
    return functools.reduce(np.kron, axes)
