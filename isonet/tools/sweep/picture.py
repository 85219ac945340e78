"""The picture of a sweep: top-1 against the values of its keys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from isonet.plots import COLOURS, as_png, new_figure, spans_decades, style
from isonet.tools.sweep.grid import shown
from isonet.tools.sweep.results import FAILED, Result

_WIDTH, _HEIGHT, _TEXT = 1600, 1000, 11.0  # pixels, pixels, points
_CLOSEST = 0.05  # of the axis, between two labels
_BEST = {"color": COLOURS[0], "marker": "o", "markersize": 7}
_LAST = {"color": COLOURS[1], "marker": "s", "markersize": 5}
_GONE = {"color": "#000000", "marker": "x", "markersize": 9, "linestyle": "none"}


def draw_sweep(keys: Sequence[str], results: Sequence[Result]) -> bytes:
    """A PNG. One key: best and last top-1 of each run against its value. Two: a map of the best, with numbers.

    More: for each key a panel with the best top-1 of all runs, and a line through the best of each value.
    """
    with style(_TEXT):
        figure = new_figure(_WIDTH, _HEIGHT)
        if len(keys) == 2:
            _draw_map(figure, keys, results)
        else:
            columns = 1 if len(keys) == 1 else 2 if len(keys) <= 4 else 3
            panels = list(figure.subplots(-(-len(keys) // columns), columns, squeeze=False, sharey=True).flat)
            for axis, key in zip(panels, keys, strict=False):
                _draw_key(axis, key, results, alone=len(keys) == 1)
            for axis in panels[len(keys) :]:
                axis.set_axis_off()
            lines, names = panels[0].get_legend_handles_labels()
            figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False)
        return as_png(figure)


def _values(key: str, results: Sequence[Result]) -> list[Any]:
    """The different values of a key: numbers in their order, others as they were given."""
    values: list[Any] = []
    for result in results:
        if result.run.values[key] not in values:
            values.append(result.run.values[key])
    return sorted(values) if all(type(value) in (int, float) for value in values) else values


def _draw_key(axis: Any, key: str, results: Sequence[Result], alone: bool) -> None:
    """Top-1 against one key."""
    where = _place(axis, key, _values(key, results))
    axis.margins(x=0.06, y=0.08)
    found = [(where[shown(r.run.values[key])], r) for r in results if r.summary.best_top1 is not None]
    found.sort(key=lambda pair: pair[0])
    good = [(x, r.summary) for x, r in found if r.state not in FAILED]
    if alone:
        axis.plot([x for x, _ in good], [s.best_top1 for _, s in good], **_BEST, label="best epoch")
        axis.plot([x for x, _ in good], [s.last_top1 for _, s in good], **_LAST, linestyle="--", label="last epoch")
    else:
        axis.plot([x for x, _ in good], [s.best_top1 for _, s in good], **_LAST, linestyle="none", label="a run")
        best = {x: max(s.best_top1 or 0.0 for other, s in good if other == x) for x, _ in good}
        axis.plot(list(best), list(best.values()), **{**_BEST, "marker": ""}, label="the best with this value")
    _mark_failures(axis, [where[shown(r.run.values[key])] for r in results if r.state in FAILED])
    axis.set_ylabel("top-1 accuracy, %" if alone else "best top-1 accuracy, %")


def _place(axis: Any, key: str, values: Sequence[Any]) -> dict[str, float]:
    """Put the values on the horizontal axis; returns where each is.

    Decades are logarithmic. At equal distances stand what are no numbers, decades and 0, and values so close
    together that their labels would run into each other.
    """
    places = [float(i) for i in range(len(values))]
    note = ""
    if all(type(value) in (int, float) for value in values):
        wide = spans_decades([value for value in values if value > 0])
        log = wide and min(values) > 0
        scaled = [math.log10(value) if log else float(value) for value in values]
        gaps = [after - before for before, after in itertools.pairwise(scaled)]
        if (wide and not log) or min(gaps, default=1.0) < _CLOSEST * sum(gaps):
            note = " (at equal distances)"
        else:
            places = [float(value) for value in values]
            axis.set_xscale("log" if log else "linear")
    axis.set_xticks(places, [shown(value) for value in values], rotation=30 if len(values) > 8 else 0)
    axis.minorticks_off()
    axis.set_xlabel(f"{key}{note}")
    return {shown(value): place for value, place in zip(values, places, strict=True)}


def _mark_failures(axis: Any, places: Sequence[float]) -> None:
    """Crosses at the lower edge."""
    if places:
        at_the_edge = axis.get_xaxis_transform()
        axis.plot(places, [0.03] * len(places), **_GONE, transform=at_the_edge, label="diverged or failed")


def _draw_map(figure: Any, keys: Sequence[str], results: Sequence[Result]) -> None:
    """The first key from left to right, the second upwards."""
    columns, rows = _values(keys[0], results), _values(keys[1], results)
    grid = [[float("nan")] * len(columns) for _ in rows]
    axis = figure.subplots()
    axis.grid(False)
    size = max(5.0, min(_TEXT, 90 / max(len(columns), 1)))
    known = [r.summary.best_top1 for r in results if r.summary.best_top1 is not None and r.state not in FAILED]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    for result in results:
        x, y = columns.index(result.run.values[keys[0]]), rows.index(result.run.values[keys[1]])
        top1, failed = result.summary.best_top1, result.state in FAILED
        if top1 is not None and not failed:
            grid[y][x] = top1
        dark = top1 is not None and not failed and top1 < low + 0.55 * (high - low)
        text = result.state if failed or top1 is None else f"{top1:.2f}"
        axis.text(x, y, text, ha="center", va="center", size=size, color="white" if dark else "black")
    image = axis.imshow(grid, origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=max(high, low + 1e-3))
    axis.set_xticks(range(len(columns)), [shown(value) for value in columns], rotation=30 if len(columns) > 8 else 0)
    axis.set_yticks(range(len(rows)), [shown(value) for value in rows])
    axis.set(xlabel=keys[0], ylabel=keys[1])
    figure.colorbar(image, ax=axis, label="best top-1 accuracy, %")
