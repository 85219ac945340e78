"""Figures of one or several runs: metrics against epochs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isonet.plots import Row, as_png, legend_below, log_scale, look, new_figure, plain_numbers, style
from isonet.plots.accuracy import explain_error_bars, standard_error

_MOST_MARKERS = 10  # on one curve
_LONGEST_NAME, _LEGEND_WIDTH = 60, 150  # characters
_FILLS = {"--": "none", "-": "full"}  # the fill of the markers by the style of the line
TEXT = 11.0  # points


@dataclass(frozen=True)
class Panel:
    """One quantity against the epochs. training, validation: the keys in ``metrics.jsonl``; validation may be empty."""

    label: str
    training: str
    validation: str = ""
    drawstyle: str = "default"
    percent: bool = False

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The key and line style of each curve. The last curve is on top."""
        return [(self.training, "--"), (self.validation, "-")] if self.validation else [(self.training, "-")]


PANELS = {
    "cross_entropy": Panel("cross entropy, nats", "cross_entropy", "val_loss"),
    "penalty": Panel("orthogonality penalty", "penalty"),
    "top1": Panel("top-1 accuracy, %", "train_top1", "top1", percent=True),
    "top5": Panel("top-5 accuracy, %", "train_top5", "top5", percent=True),
    "learning_rate": Panel("learning rate", "learning_rate", drawstyle="steps-mid"),
}
SHOWN = ("cross_entropy", "penalty", "top1", "learning_rate")


def draw_runs(
    runs: Mapping[str, Sequence[Row]], keys: Sequence[str] = SHOWN, images: Mapping[str, int | None] | None = None
) -> bytes:
    """Draw a PNG of one or more runs, with a panel for each of ``keys`` and a colour and marker for each run.

    Training is dashed and hollow, and validation is solid. A validation accuracy has a band of one standard error, or
    an error bar if the run has one epoch. With more than 42 runs, colours and markers repeat.

    runs: the rows of metrics by the name of the run. keys: one or four keys of ``PANELS``. images: the number of
    validation images by the name of the run. A run with an unknown number has no band.
    """
    images = images or {}
    with style(TEXT):
        figure = new_figure(1600, 1000)
        shape = (2, 2) if len(keys) > 1 else (1, 1)
        every = math.ceil(max(rows[-1]["epoch"] for rows in runs.values()) / _MOST_MARKERS)
        for axis, key in zip(figure.subplots(*shape, squeeze=False).flat, keys, strict=True):
            panel = PANELS[key]
            for number, (name, rows) in enumerate(runs.items()):
                epochs = [row["epoch"] for row in rows]
                first = min(number * every // len(runs), len(rows) - 1)  # separates the markers of equal curves
                for column, dash in panel.lines:
                    values = [row.get(column, math.nan) for row in rows]  # nan is not drawn
                    line = {"linestyle": dash, "drawstyle": panel.drawstyle, "markevery": (first, every)}
                    line["fillstyle"] = _FILLS[dash] if panel.validation else "full"
                    axis.plot(epochs, values, **line, **look(number))
                if panel.percent and (count := images.get(name)):
                    low, high = zip(*(_band(value, count) for value in values), strict=True)
                    axis.fill_between(epochs, low, high, color=look(number)["color"], alpha=0.15, linewidth=0)
                    if len(rows) == 1:  # a band of one point is invisible
                        axis.vlines(epochs, low, high, color=look(number)["color"])
            _scale(axis, panel, list(runs.values()))
            if hidden := [name for name, rows in runs.items() if not any(row.get(panel.training) for row in rows)]:
                axis.set_title(f"0 or not computed: {', '.join(hidden)[: _LEGEND_WIDTH // 2]}", size="small")
            if panel.percent:
                explain_error_bars(axis, [images.get(name) for name in runs])
        _add_legend(figure, list(runs), any(PANELS[key].validation for key in keys))
        return as_png(figure)


def _band(accuracy: float, images: int) -> tuple[float, float]:
    error = standard_error(accuracy, images)
    return max(accuracy - error, 0.0), min(accuracy + error, 100.0)  # max and min return a nan in the first place


def _scale(axis: Any, panel: Panel, runs: Sequence[Sequence[Row]]) -> None:
    """Scale the axes: whole epochs on x; the quantity on y, logarithmic if it may be and spans a decade."""
    from matplotlib.ticker import MaxNLocator

    last = max(rows[-1]["epoch"] for rows in runs)
    margin = max(0.3, 0.02 * last)
    axis.set_xlim(1 - margin, max(last, 2) + margin)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")

    axis.set_ylabel(panel.label)
    values = (row.get(key, math.nan) for rows in runs for key, _ in panel.lines for row in rows)
    known = [value for value in values if value and not math.isnan(value)]  # a penalty of 0 was not computed
    if not panel.percent and known and 0 < 9.99 * min(known) <= max(known):
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
        handles += [
            Line2D([], [], color="#666666", linestyle=dash, marker="o", fillstyle=fill) for dash, fill in _FILLS.items()
        ]
    legend_below(figure, handles, names, max(1, min(len(names), _LEGEND_WIDTH // (max(map(len, names)) + 7))))
