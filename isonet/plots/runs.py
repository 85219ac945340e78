"""Figures of runs: metrics against epochs, of one run or several, and the accuracies of a sweep."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isonet.plots import COLOURS, Row, as_png, legend_below, log_scale, look, new_figure, plain_numbers, short, style

_MOST_MARKERS = 10  # on one curve
_LONGEST_NAME, _LEGEND_WIDTH = 60, 150  # characters
_TEXT = 11.0  # points


@dataclass(frozen=True)
class Panel:
    """One quantity against the epochs. training, validation: the keys in ``metrics.jsonl``; validation may be empty."""

    label: str
    training: str
    validation: str = ""
    drawstyle: str = "default"
    may_be_log: bool = True

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The key and line style of each curve. The last curve is on top."""
        return [(self.training, "--"), (self.validation, "-")] if self.validation else [(self.training, "-")]


PANELS = {
    "cross_entropy": Panel("cross entropy, nats", "cross_entropy", "val_loss"),
    "penalty": Panel("orthogonality penalty", "penalty"),
    "top1": Panel("top-1 accuracy, %", "train_top1", "top1", may_be_log=False),
    "top5": Panel("top-5 accuracy, %", "train_top5", "top5", may_be_log=False),
    "learning_rate": Panel("learning rate", "learning_rate", drawstyle="steps-mid"),
}
SHOWN = ("cross_entropy", "penalty", "top1", "learning_rate")


def draw_runs(runs: Mapping[str, Sequence[Row]], keys: Sequence[str] = SHOWN) -> bytes:
    """Draw a PNG of one or more runs, with a panel for each of ``keys`` and a colour and marker for each run.

    Training is dashed, and validation is solid. With more than 42 runs, colours and markers repeat. runs: the rows of
    metrics by the run's name. keys: one or four keys of ``PANELS``.
    """
    with style(_TEXT):
        figure = new_figure(1600, 1000)
        shape = (2, 2) if len(keys) > 1 else (1, 1)
        every = math.ceil(max(rows[-1]["epoch"] for rows in runs.values()) / _MOST_MARKERS)
        for axis, key in zip(figure.subplots(*shape, squeeze=False).flat, keys, strict=True):
            panel = PANELS[key]
            for number, rows in enumerate(runs.values()):
                first = min(number * every // len(runs), len(rows) - 1)  # separates the markers of equal curves
                for column, dash in panel.lines:
                    line = {"linestyle": dash, "drawstyle": panel.drawstyle, "markevery": (first, every)}
                    axis.plot(_values(rows, "epoch"), _values(rows, column), **line, **look(number))
            _scale(axis, panel, list(runs.values()))
        _add_legend(figure, list(runs), any(PANELS[key].validation for key in keys))
        return as_png(figure)


def _values(rows: Sequence[Row], key: str) -> list[float]:
    """Return the column ``key``. Rows that lack it have nan, which is not drawn."""
    return [row.get(key, math.nan) for row in rows]


def _scale(axis: Any, panel: Panel, runs: Sequence[Sequence[Row]]) -> None:
    """Scale the axes: whole epochs on x; the quantity on y, logarithmic if it may be and spans a decade."""
    from matplotlib.ticker import MaxNLocator

    last = max(rows[-1]["epoch"] for rows in runs)
    margin = max(0.3, 0.02 * last)
    axis.set_xlim(1 - margin, max(last, 2) + margin)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")

    axis.set_ylabel(panel.label)
    values = (value for rows in runs for key, _ in panel.lines for value in _values(rows, key))
    known = [value for value in values if value and not math.isnan(value)]  # a penalty of 0 was not computed
    if panel.may_be_log and known and 0 < 9.99 * min(known) <= max(known):
        log_scale(axis, min(known), max(known))
    else:
        axis.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
        plain_numbers(axis.yaxis)


def _add_legend(figure: Any, names: list[str], dashes: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look(number)) for number in range(len(names))]
    names = [name[-_LONGEST_NAME:] for name in names]  # the ends distinguish runs
    if dashes:
        names += ["training", "validation"]
        handles += [Line2D([], [], color="#666666", linestyle=dash) for dash in ("--", "-")]
    legend_below(figure, handles, names, max(1, min(len(names), _LEGEND_WIDTH // (max(map(len, names)) + 7))))


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    values: the values of the keys that vary. best_top1, last_top1: accuracies in percent; None before the first epoch
    and for a failed run. state: the text in place of a missing accuracy. failed: whether the run diverged or failed.
    """

    values: dict[str, Any]
    best_top1: float | None = None
    last_top1: float | None = None
    state: str = "waiting"
    failed: bool = False


def draw_sweep(keys: Sequence[str], points: Sequence[Point]) -> bytes:
    """Draw a PNG of a sweep over ``keys``, whose values are at equal distances.

    One key: best and last top-1 against its value. Two keys: a map of the best top-1, with numbers. More keys: a panel
    for each key with the best top-1 of all runs, and a line through the best run of each value.
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
    """Draw the map, with the first key from left to right and the second key upwards."""
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
    """Return each value once: numbers in increasing order, other values in the given order."""
    once = [value for number, value in enumerate(values) if value not in values[:number]]
    return sorted(once) if all(type(value) in (int, float) for value in once) else once


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "_".join(map(_text, value)) or "none"
    return short(value) if isinstance(value, float) else str(value)
