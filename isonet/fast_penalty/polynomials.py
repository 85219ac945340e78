"""Kernels read as polynomials: points, and what each tap counts in the value at a point (NumPy, float64)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

Axes = tuple[int, ...]  # a whole number for each axis
# On one axis (a, b) stands for z = a / b, so that (b, a) is 1/z, and (1, 0) infinity
AxisPoint = tuple[complex, complex]
Point = tuple[AxisPoint, ...]


def powers(point: AxisPoint, size: int) -> np.ndarray:
    """What each of ``size`` taps counts at a point of one axis, a^t b^(size - 1 - t): (size,)."""
    a, b = point
    return np.array([a**t * b ** (size - 1 - t) for t in range(size)])


def outer(axes: Iterable[np.ndarray]) -> np.ndarray:
    """What holds on each axis, multiplied: for every tap, or offset, of all axes."""
    return functools.reduce(np.kron, axes)


def inverse(z: Point) -> Point:
    """1/z, on each axis."""
    return tuple((b, a) for a, b in z)


def pair_up(axes: Sequence[Sequence[AxisPoint]]) -> list[Point]:
    """All points, of axes that give 1 and one of each pair: 1, one of each pair, in the same order the others."""
    one, *others = itertools.product(*([*axis, *((b, a) for a, b in axis[1:])] for axis in axes))
    half: dict[Point, None] = {}
    for z in others:
        if inverse(z) not in half:
            half[z] = None
    return [one, *half, *map(inverse, half)]


def taps_of_phase(kernel: Axes, step: Axes) -> list[int]:
    """On each axis the taps of the longest phase."""
    return [-(-k // s) for k, s in zip(kernel, step, strict=True)]


def value_row(z: Point, kernel: Axes, step: Axes, phase: Axes) -> np.ndarray:
    """What each tap counts in the value of ``phase`` at ``z``: (K,)."""
    axes = []
    for point, k, every, first in zip(z, kernel, step, phase, strict=True):
        counts = powers(point, -(-k // every))
        axis = np.zeros(k, counts.dtype)
        axis[first::every] = counts[: len(axis[first::every])]
        axes.append(axis)
    return outer(axes)


def factors(points: Sequence[Point], kernel: Axes, step: Axes) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The factors W(z) and W(1/z) of all products, as value rows (products, K), and the place of each one's point.

    Every phase has a product at every point, but where it vanishes.
    """
    left, right, place = [], [], []
    for (i, z), phase in itertools.product(enumerate(points), itertools.product(*map(range, step))):
        row, inverse_row = (value_row(at, kernel, step, phase) for at in (z, inverse(z)))
        if row.any() and inverse_row.any():
            left.append(row)
            right.append(inverse_row)
            place.append(i)
    return np.array(left), np.array(right), place
