"""Figures of a sweep: the accuracies of its runs against the values of the varied keys."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isonet.plots import COLOURS, as_png, legend_below, look, new_figure, short, style
from isonet.plots.accuracy import error_bar_note, explain_error_bars, least_range, standard_error
from isonet.plots.runs import TEXT


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    values: the values of the varied keys. best_top1, last_top1: accuracies in percent; None before the first epoch
    and for a failed run. state: the text that replaces a missing accuracy. failed: whether the run diverged or failed.
    images: the number of validation images, if it is known.
    """

    values: dict[str, Any]
    best_top1: float | None = None
    last_top1: float | None = None
    state: str = "waiting"
    failed: bool = False
    images: int | None = None

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def error(self) -> float:
        """The standard error of the best accuracy, or 0 if the number of images is unknown."""
        return standard_error(self.best_top1 or 0.0, self.images) if self.images else 0.0


def draw_sweep(keys: Sequence[str], points: Sequence[Point]) -> bytes:
    """Draw a PNG of a sweep over ``keys``. The values of a key are at equal distances.

    One key gives a plot of the best and the last top-1. Two keys give a map of the best top-1 with numbers. More keys
    give a panel for each key with the best top-1 of all runs, and a line through the best run of each value. Runs that
    are not finished are hollow. An error bar of the best top-1 is one standard error.
    """
    with style(TEXT):
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
    best, last = ("best_top1", "best epoch" if alone else "a run"), ("last_top1", "last epoch")
    for number, (column, label) in enumerate((best, last) if alone else (best,)):
        known = [(values.index(p.values[key]), getattr(p, column), p) for p in points if getattr(p, column) is not None]
        style = {**look(number if alone else 1), "markersize": 7 if alone and not number else 4, "linestyle": "none"}
        for finished, name, fill in ((True, label, "full"), (False, f"{label}, not finished", "none")):
            if part := [(x, y, p.error) for x, y, p in known if p.finished == finished]:
                x, y, errors = zip(*part, strict=True)
                axis.plot(x, y, **style, label=name, fillstyle=fill)
                if column == "best_top1" and any(errors):
                    axis.errorbar(x, y, yerr=errors, ecolor=style["color"], elinewidth=1, capsize=3, fmt="none")
        # nan breaks the line at a value without a run
        line = [max((y for x, y, _ in known if x == place), default=math.nan) for place in range(len(values))]
        name = "" if alone else "the best with this value"
        axis.plot(line, color=COLOURS[number], linestyle="--" if number else "-", label=name)
    if failed := [values.index(point.values[key]) for point in points if point.failed]:
        axis.plot(
            failed, [0.03] * len(failed), color="black", marker="x", markersize=9, linestyle="none",
            transform=axis.get_xaxis_transform(), label="diverged or failed",
        )  # fmt: skip
    axis.set_xlim(-0.3, len(values) - 0.7)
    axis.margins(y=0.08)
    explain_error_bars(axis, [point.images for point in points])
    _label(axis.xaxis, key, values)
    axis.set_ylabel("top-1 accuracy, %" if alone else "best top-1 accuracy, %")


def _draw_map(figure: Any, keys: Sequence[str], points: Sequence[Point]) -> None:
    """Draw the map, with the first key from left to right and the second key upwards."""
    columns, rows = (_different([point.values[key] for point in points]) for key in keys)
    axis = figure.subplots()
    axis.grid(False)
    grid = [[math.nan] * len(columns) for _ in rows]
    known = [point.best_top1 for point in points if point.best_top1 is not None] or [0.0, 1.0]
    low, high = min(known), max(known)
    low = min(low, high - least_range([point.images for point in points]))  # one image hardly changes the colour
    for point in points:
        x, y = columns.index(point.values[keys[0]]), rows.index(point.values[keys[1]])
        text, colour = point.state, "black"
        if point.best_top1 is not None:
            grid[y][x] = point.best_top1
            text = f"{point.best_top1:.2f}" + ("" if point.finished else f"\n{point.state}")
            colour = "white" if point.best_top1 < low + 0.55 * (high - low) else "black"
        size = max(5.0, min(TEXT, 90 / len(columns)))
        axis.text(x, y, text, ha="center", va="center", size=size, color=colour)
    image = axis.imshow(grid, origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=high)
    _label(axis.xaxis, keys[0], columns)
    _label(axis.yaxis, keys[1], rows)
    axis.set_title(error_bar_note([point.images for point in points]), size="small")
    figure.colorbar(image, ax=axis, label="best top-1 accuracy, %")


def _label(axis: Any, key: str, values: Sequence[Any]) -> None:
    """Label an x or y axis with ``key`` and its ticks with ``values``."""
    rotation = 30 if len(values) > 8 and axis.axis_name == "x" else 0
    axis.set_ticks(range(len(values)), labels=[_text(value) for value in values], rotation=rotation)
    axis.set_label_text(key)


def _different(values: Sequence[Any]) -> list[Any]:
    """Return each value once: numbers in increasing order, other values in the given order."""
    once = [value for number, value in enumerate(values) if value not in values[:number]]
    return sorted(once) if all(type(value) in (int, float) for value in once) else once


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "_".join(map(_text, value)) or "none"
    return short(value) if isinstance(value, float) else str(value)
