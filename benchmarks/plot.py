"""The figures of the benchmarks: the penalty against width and depth, and a training step against what grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Row
from benchmarks.growth import AXES, LABELS, Curve, curves, exponent, values_of
from isonet.plots import as_png, legend_below, log_scale, look, new_figure, plain_numbers, require_matplotlib, style

X_LABELS = {"depth": "depth", "width": "channels of the first stage", "size": "pixels a side", "batch": "images a step"}


def draw_scaling(by_width: dict[int, Row], by_depth: dict[int, Row], file: Path) -> None:
    require_matplotlib(str(file))
    panels = (("channels of one 3x3 convolution", by_width), ("depth of a CIFAR ISONet", by_depth))
    with style(10):
        figure = new_figure(1350, 570)
        for axis, (label, rows) in zip(figure.subplots(1, 2), panels, strict=True):
            baseline = [row.baseline for row in rows.values()]
            axis.plot(list(rows), baseline, **look(1), label="padded convolution, as published")
            axis.plot(list(rows), [row.value for row in rows.values()], **look(0), label="this code")
            for x, row in rows.items():
                place = {"xytext": (0, -14), "textcoords": "offset points", "ha": "center"}
                axis.annotate(f"{row.ratio:.1f}x", (x, row.value), **place)
            axis.set(xscale="log", yscale="log", xlabel=label, ylabel="penalty and gradient, ms")
            axis.set_xticks(list(rows))
            plain_numbers(axis.xaxis)
            plain_numbers(axis.yaxis)
            axis.margins(0.1, 0.15)
        figure.axes[0].legend()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(as_png(figure))


def draw_growth(rows: Sequence[Row], file: Path) -> None:
    """Draw the time and the memory of a step against what grows, with the slope of the last part of each line."""
    require_matplotlib(str(file))
    names = {"published": "the published form", "ours": "this code, channels last"}
    with style(10):
        figure = new_figure(1900, 950)
        panels = figure.subplots(2, len(AXES))
        for column, axis in enumerate(AXES):
            for panel, unit in zip(panels[:, column], LABELS, strict=True):
                curve = curves(rows, axis.field)[unit]
                for variant, name in names.items():
                    panel.plot(list(curve), values_of(curve, variant), **look(variant == "published"), label=name)
                    _label_slope(panel, curve, variant)
                panel.set(xscale="log", xlabel=X_LABELS[axis.field])
                panel.set_xticks(list(curve))
                panel.margins(0.1, 0.12)
                first, last = panel.get_xlim()
                panel.set_xlim(right=last * (last / first) ** 0.15)  # room for the slopes
                plain_numbers(panel.xaxis)
                log_scale(panel, *(edge(edge(values_of(curve, v)) for v in names) for edge in (min, max)))
            panels[0, column].set_title(axis.title)
        for panel, (unit, label) in zip(panels[:, 0], LABELS.items(), strict=True):
            panel.set_ylabel(f"{label} of a step, {unit}")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        legend_below(figure, handles, labels, 2)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(as_png(figure))


def _label_slope(panel: Any, curve: Curve, variant: str) -> None:
    """Write the slope between the last two points beside their line: above the published form, below this code."""
    above = variant == "published"
    middle = [math.sqrt(first * last) for first, last in (list(curve)[-2:], values_of(curve, variant)[-2:])]
    panel.annotate(
        f"slope {exponent(curve, variant):.2f}", middle, xytext=(-7, 4) if above else (7, -4),
        textcoords="offset points", ha="right" if above else "left", va="bottom" if above else "top",
        color=look(above)["color"],
    )  # fmt: skip
