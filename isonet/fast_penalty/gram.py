"""The penalty, computed from values of kernels at points with few matrix products (Toom 1963; Cook 1966).

Regard a kernel as a polynomial with one variable per axis, W(z) = sum over taps t of W[t] z^t. Its Gram matrices
(``isonet.ortho``) are the coefficients of

    W(z) W(1/z)^T = sum over offsets d of  G[d] z^d,

so its values at as many points as there are offsets determine all of them. The value at 1/z is the transpose of the
value at z, which saves every other product: the 25 Gram matrices of a 3x3 kernel are sums of 81 products of taps, and
need 13 products here. Let E = G - [d = 0] I. The penalty 1/2 sum_d ||E[d]||^2 is a quadratic form of the values E(z)
with some matrix M, and its gradient at tap t is

    sum over all points z of  2 z^t S(z) W(1/z),      S = M E.

If only offsets that are multiples of a step count, the taps split into ``step`` phases on each axis. Each phase is
a separate kernel, and the products at a point are summed over the phases.

Shapes: N kernels, K taps each, C channels on the narrower side, D on the other.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isonet.convs import ConvShape
from isonet.ortho import OPERATOR, PUBLISHED

Axes = tuple[int, ...]  # a whole number for each axis
# A point is a pair (a, b) per axis, which stands for z = a / b: (b, a) is 1/z, and (1, 0) is infinity
Point = tuple[tuple[int, int], ...]

# Points of one axis, for up to three taps: z = 1, and one of each pair z and 1/z. As tangents of half-angles, they
# are spaced almost evenly on the circle, so the rounding error is little larger than that of sums over offsets. With 2
# in place of -2 it would be 30 times larger
_OF_AXIS = [(1, 1), (0, 1), (-2, 1)]
# Points of all axes together: 25 for 3x3 and 27 for 2x2x2. 3x3x3 would have 125, and a rounding error 20 times that of
# the definition
_MOST_POINTS = 27

# The cost of a value at a point beside the products: it passes through memory. The cost is fitted to times of 34 shapes
# of ImageNet and CIFAR networks on a CPU, and predicts most of them to within a quarter
_MACS_PER_VALUE = 256
_COMPLEX_MACS = 4  # real multiply-accumulates in a complex one

_outer = functools.partial(functools.reduce, np.kron)  # weights on each axis -> weights of all taps or offsets


def has_points(kernel: Axes, step: Axes) -> bool:
    """Return whether there are points for kernels of this size: up to three taps per phase, and few points in all."""
    taps = _taps_of_phase(kernel, step)
    return max(taps) <= len(_OF_AXIS) and math.prod(2 * m - 1 for m in taps) <= _MOST_POINTS


class Points:
    """The points for kernels of one size, and the tables that map taps to values, and values to the penalty.

    Values are homogeneous, a^t b^(taps - 1 - t) in place of z^t, so that infinity can be a point.
    """

    def __init__(self, kernel: Axes, step: Axes, dtype: torch.dtype, device: torch.device) -> None:
        make = functools.partial(torch.tensor, dtype=dtype, device=device)
        taps = _taps_of_phase(kernel, step)
        grid = _pair_up([_OF_AXIS[:m] for m in taps])
        self.points = len(grid) // 2 + 1  # points with a product: 1, and one of each pair
        left, right, place = _factors(grid[: self.points], kernel, step)
        self.products, self.at_one = len(place), place.count(0)
        self.values = make(np.concatenate([left, right[self.at_one :]]))  # (rows, K): the weight of a tap in a value
        self.twice_values = 2 * self.values
        self.rows: int = len(self.values)  # values (C, D) that are computed of each kernel
        # (points, products): 1 if a product belongs to a point. None: each point has one product
        self.phases = make(np.eye(self.points)[:, place]) if self.products > self.points else None
        of_gram = np.array([_outer(_powers(axis, 2 * m - 1) for axis, m in zip(z, taps, strict=True)) for z in grid])
        self.identity = make(of_gram[: self.points, len(grid) // 2])  # (points,): the weight of offset zero in a value
        self.form = make(np.linalg.inv(of_gram @ of_gram.T)[: self.points])  # M: (points, all points)
        self.share = make([0.5] + [1.0] * (self.points - 1))  # the weight of a point in the penalty: pairs count twice

    def penalties(self, taps: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """Return the penalty of each kernel, (K, N, C, D) -> (N,), and its gradient, or None without ``with_grad``."""
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
        del error, half, products  # the gradient reuses their memory
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
        """Return the multiply-accumulates for the penalty of one kernel, and for its gradient."""
        evaluation, product = self.values.numel() * c * d, c * c * d
        sums = 0 if self.phases is None else self.phases.numel() * c * c
        value = evaluation + self.products * product + sums + self.form.numel() * c * c
        return value, sums + (2 * self.products - self.at_one) * product + evaluation


points_for = functools.lru_cache(maxsize=256)(Points)


def _taps_of_phase(kernel: Axes, step: Axes) -> list[int]:
    """Return for each axis the number of taps of the longest phase."""
    return [-(-k // s) for k, s in zip(kernel, step, strict=True)]


def _inverse(z: Point) -> Point:
    """Return 1/z, on each axis."""
    return tuple((b, a) for a, b in z)


def _pair_up(axes: Sequence[Sequence[tuple[int, int]]]) -> list[Point]:
    """Return all points: 1, then one point of each pair z and 1/z, then the others in the same order.

    axes: for each axis, 1 and one point of each pair.
    """
    one, *others = itertools.product(*([*axis, *_inverse(tuple(axis[1:]))] for axis in axes))
    half: list[Point] = []
    for z in others:
        if _inverse(z) not in half:
            half.append(z)
    return [one, *half, *map(_inverse, half)]


def _powers(point: tuple[int, int], size: int) -> np.ndarray:
    """Return a^t b^(size - 1 - t) for each of ``size`` taps t of one axis: (size,)."""
    a, b = point
    return np.array([a**t * b ** (size - 1 - t) for t in range(size)])


def _value_row(z: Point, kernel: Axes, step: Axes, phase: Axes) -> np.ndarray:
    """Return the weight of each tap in the value of ``phase`` at ``z``: (K,)."""
    axes = []
    for point, k, every, first in zip(z, kernel, step, phase, strict=True):
        axis = np.zeros(k, int)
        taps = axis[first::every]
        taps[:] = _powers(point, -(-k // every))[: len(taps)]
        axes.append(axis)
    return _outer(axes)


def _factors(points: Sequence[Point], kernel: Axes, step: Axes) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return the factors W(z) and W(1/z) of all products, as value rows (products, K), with the index of its point.

    Every phase has a product at every point unless the product is zero.
    """
    left, right, place = [], [], []
    for (i, z), phase in itertools.product(enumerate(points), itertools.product(*map(range, step))):
        row, inverse_row = (_value_row(at, kernel, step, phase) for at in (z, _inverse(z)))
        if row.any() and inverse_row.any():
            left.append(row)
            right.append(inverse_row)
            place.append(i)
    return np.array(left), np.array(right), place


class Grams(NamedTuple):
    """The Gram matrices of one shape of convolution, as the penalty needs them."""

    conv: ConvShape
    strided: str = PUBLISHED

    @property
    def exchanged(self) -> bool:
        """Whether outputs and inputs are exchanged, because the Gram matrices are on the narrower side."""
        inputs = self.conv.in_channels * (math.prod(self.conv.step) if self.strided == OPERATOR else 1)
        return inputs < self.conv.out_channels

    @property
    def fast(self) -> bool:
        """Whether the penalty is computed from points rather than by the definition.

        Points are used for the kernels of all configs: up to three taps on each of two axes. The definition is used for
        larger kernels, most kernels with three axes, and the columns of a strided operator, which mix kernel phases.
        """
        mixed = self.strided == OPERATOR and self.exchanged and math.prod(self.conv.step) > 1
        return not mixed and has_points(self.conv.kernel, self.conv.step)

    @property
    def rows(self) -> int:
        """C: the channels per group on the side of the Gram matrices."""
        return (self.conv.in_channels if self.exchanged else self.conv.out_channels) // self.conv.groups

    @property
    def columns(self) -> int:
        """D: the channels per group on the other side."""
        return (self.conv.out_channels if self.exchanged else self.conv.in_channels) // self.conv.groups

    @property
    def values(self) -> int:
        """The size of the largest intermediate result: the values of one kernel at all points, or frequencies."""
        at = self.points().rows if self.fast else math.prod(2 * k - 1 for k in self.conv.kernel)
        return at * self.conv.groups * self.rows * self.columns

    def cost(self) -> float:
        """Return the approximate cost of the penalty and its gradient in multiply-accumulates, to compare shapes."""
        if self.fast:
            products = self.conv.groups * sum(self.points().macs(self.rows, self.columns))
        else:
            products = 3 * _COMPLEX_MACS * self.values * self.rows  # one product forward, two backward
        return products + _MACS_PER_VALUE * self.values

    def points(self, like: Tensor | None = None) -> Points:
        """Return the points of the kernels, in the type and on the device of ``like``, or float32 on the CPU."""
        dtype, device = (torch.float32, torch.device("cpu")) if like is None else (like.dtype, like.device)
        return points_for(self.conv.kernel, self.conv.step, dtype, device)
