"""Metrics against epochs: the curves of a run while it trains, or those of several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isonet import plots
from isonet.plots import Row, look

_MOST_MARKERS = 10  # on one curve
_LONGEST_NAME, _LEGEND_WIDTH = 60, 150  # characters


@dataclass(frozen=True)
class Panel:
    """One quantity against the epochs, with its keys in ``metrics.jsonl``: of training, and of validation if any."""

    label: str
    training: str
    validation: str = ""
    drawstyle: str = "default"
    may_be_log: bool = True

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Key and line style of each curve, the one on top last."""
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
    """A PNG of one or more runs: a panel for each of ``keys``, a colour and marker for each run.

    Training is dashed, validation solid. runs: rows of metrics by the run's name. keys: of ``PANELS``, one or four.
    More than 42 runs share colours and markers.
    """
    with plots.style(10.5):
        figure = plots.new_figure(1600, 1000)
        shape = (2, 2) if len(keys) > 1 else (1, 1)
        every = math.ceil(max(rows[-1]["epoch"] for rows in runs.values()) / _MOST_MARKERS)
        for axis, key in zip(figure.subplots(*shape, squeeze=False).flat, keys, strict=True):
            panel = PANELS[key]
            for number, rows in enumerate(runs.values()):
                first = min(number * every // len(runs), len(rows) - 1)  # keeps the markers of equal curves apart
                for column, dash in panel.lines:
                    line = {"linestyle": dash, "drawstyle": panel.drawstyle, "markevery": (first, every)}
                    axis.plot(_values(rows, "epoch"), _values(rows, column), **line, **look(number))
            _scale(axis, panel, list(runs.values()))
        _add_legend(figure, list(runs), any(PANELS[key].validation for key in keys))
        return plots.as_png(figure)


def _values(rows: Sequence[Row], key: str) -> list[float]:
    """The column ``key``, with nan, which is not drawn, in rows that lack it."""
    return [row.get(key, math.nan) for row in rows]


def _scale(axis: Any, panel: Panel, runs: Sequence[Sequence[Row]]) -> None:
    """Whole epochs from left to right; upwards the quantity, logarithmic if it may be and spans a decade."""
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
        plots.log_scale(axis, min(known), max(known))
    else:
        axis.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
        plots.plain_numbers(axis.yaxis)


def _add_legend(figure: Any, names: list[str], dashes: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look(number)) for number in range(len(names))]
    names = [name[-_LONGEST_NAME:] for name in names]  # the ends tell them apart
    if dashes:
        names += ["training", "validation"]
        handles += [Line2D([], [], color="#666666", linestyle=dash) for dash in ("--", "-")]
    plots.legend_below(figure, handles, names, max(1, min(len(names), _LEGEND_WIDTH // (max(map(len, names)) + 7))))
