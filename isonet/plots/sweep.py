"""Top-1 accuracy against the keys that a sweep varies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isonet.plots import COLOURS, as_png, legend_below, look, new_figure, short, style

_TEXT = 11.0  # points


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    values: of the keys that vary. best_top1, last_top1: in percent, None before the first epoch and for a failed run.
    state: drawn in place of a missing accuracy. failed: the run diverged or failed.
    """

    values: dict[str, Any]
    best_top1: float | None = None
    last_top1: float | None = None
    state: str = "waiting"
    failed: bool = False


def draw_sweep(keys: Sequence[str], points: Sequence[Point]) -> bytes:
    """A PNG of a sweep over ``keys``, whose values stand at equal distances.

    One key: best and last top-1 against its value. Two keys: a map of the best top-1, with numbers. More: a panel for
    each key with the best top-1 of all runs, and a line through the best run of each value.
    """
    with style(_TEXT):
        figure = new_figure(1600, 1000)
        if len(keys) == 2:
            _draw_map(figure, keys, points)
            return as_png(figure)
        columns = 1 if len(keys) == 1 else 2 if len(keys) <= 4 else 3
        panels = list(figure.subplots(-(-len(keys) // columns), columns, squeeze=False, sharey=True).flat)
        for axis, key in zip(panels, keys, strict=False):
            _draw_key(axis, key, points, alone=len(keys) == 1)
        for axis in panels[len(keys) :]:
            axis.set_axis_off()
        handles, names = panels[0].get_legend_handles_labels()
        legend_below(figure, handles, names, len(names))
        return as_png(figure)


def _draw_key(axis: Any, key: str, points: Sequence[Point], alone: bool) -> None:
    values = _different([point.values[key] for point in points])
    known = sorted((values.index(p.values[key]), p.best_top1, p.last_top1) for p in points if p.best_top1 is not None)
    x, best, last = zip(*known, strict=True) if known else ((), (), ())
    if alone:
        axis.plot(x, best, **look(0), markersize=7, label="best epoch")
        axis.plot(x, last, **look(1), linestyle="--", label="last epoch")
    else:
        axis.plot(x, best, **look(1), linestyle="none", label="a run")
        highest = {each: max(top1 for other, top1, _ in known if other == each) for each in x}
        axis.plot(list(highest), list(highest.values()), color=COLOURS[0], label="the best with this value")
    if failed := [values.index(point.values[key]) for point in points if point.failed]:
        axis.plot(
            failed, [0.03] * len(failed), color="black", marker="x", markersize=9, linestyle="none",
            transform=axis.get_xaxis_transform(), label="diverged or failed",
        )  # fmt: skip
    axis.set_xlim(-0.3, len(values) - 0.7)
    axis.margins(y=0.08)
    _label(axis.xaxis, key, values)
    axis.set_ylabel("top-1 accuracy, %" if alone else "best top-1 accuracy, %")


def _draw_map(figure: Any, keys: Sequence[str], points: Sequence[Point]) -> None:
    """The first key from left to right, the second upwards."""
    columns, rows = (_different([point.values[key] for point in points]) for key in keys)
    axis = figure.subplots()
    axis.grid(False)
    grid = [[math.nan] * len(columns) for _ in rows]
    known = [point.best_top1 for point in points if point.best_top1 is not None] or [0.0, 1.0]
    low, high = min(known), max(known)
    for point in points:
        x, y = columns.index(point.values[keys[0]]), rows.index(point.values[keys[1]])
        text, colour = point.state, "black"
        if point.best_top1 is not None:
            grid[y][x], text = point.best_top1, f"{point.best_top1:.2f}"
            colour = "white" if point.best_top1 < low + 0.55 * (high - low) else "black"
        size = max(5.0, min(_TEXT, 90 / len(columns)))
        axis.text(x, y, text, ha="center", va="center", size=size, color=colour)
    image = axis.imshow(grid, origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=max(high, low + 1e-3))
    _label(axis.xaxis, keys[0], columns)
    _label(axis.yaxis, keys[1], rows)
    figure.colorbar(image, ax=axis, label="best top-1 accuracy, %")


def _label(axis: Any, key: str, values: Sequence[Any]) -> None:
    """Name an x or y axis after ``key`` and its ticks after ``values``."""
    rotation = 30 if len(values) > 8 and axis.axis_name == "x" else 0
    axis.set_ticks(range(len(values)), labels=[_text(value) for value in values], rotation=rotation)
    axis.set_label_text(key)


def _different(values: Sequence[Any]) -> list[Any]:
    """Each value once: numbers in increasing order, others as they come."""
    once = [value for number, value in enumerate(values) if value not in values[:number]]
    return sorted(once) if all(type(value) in (int, float) for value in once) else once


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "_".join(map(_text, value)) or "none"
    return short(value) if isinstance(value, float) else str(value)
