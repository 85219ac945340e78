"""The pictures of the isometry report. Each function takes reports by name and gives a figure of matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from isonet.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Reports = dict[str, dict[str, Any]]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # with the colours, so that a grey print tells them apart


@contextmanager
def _axes(height: float = 3.4, panels: int = 1) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and looks for a screen

    figure = Figure(figsize=(8.0, height * panels), layout="constrained")
    axes = [figure.add_subplot(panels, 1, i + 1) for i in range(panels)]
    for axis in axes:
        axis.grid(True, axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    yield figure, axes


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": _MARKERS[number % len(_MARKERS)], "markersize": 3.5}


def _name_layers(axis: Axes, names: Sequence[str]) -> None:
    """As many names as stay legible, without the parts that repeat."""
    step = -(-len(names) // 28)
    places = range(0, len(names), step)
    axis.set_xticks(list(places), [names[i].replace(".f.", ".") for i in places], rotation=90, fontsize=7)
    axis.set_xlim(-0.7, len(names) - 0.3)


def _legend(axis: Axes, reports: Reports) -> None:
    if len(reports) > 1:
        legend = axis.legend(
            fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(4, len(reports))
        )
        for text in legend.get_texts():
            text.set_parse_math(False)  # a $ of a name is no formula; ticks such as 10^-3 are


def spectrum_by_layer(reports: Reports) -> Figure:
    """From the smallest to the largest singular value of each convolution, half of them in the thick part."""
    with _axes(3.6, len(reports)) as (figure, axes):
        for number, (axis, (name, report)) in enumerate(zip(axes, reports.items(), strict=True)):
            convs, colour = report["convs"], COLOURS[number % len(COLOURS)]
            x = range(len(convs))
            low = [max(conv["smallest"], 1e-3) for conv in convs]
            axis.vlines(x, low, [conv["largest"] for conv in convs], color=colour, linewidth=1.2)
            quartiles = [[max(conv["quantiles"][i], 1e-3) for conv in convs] for i in (1, 3)]
            axis.vlines(x, *quartiles, color=colour, linewidth=4, alpha=0.6)
            axis.plot(x, [max(conv["quantiles"][2], 1e-3) for conv in convs], "o", color="black", markersize=3)
            axis.axhline(1, color="#888888", linewidth=0.8)
            axis.set_yscale("log")
            axis.set_ylim(min(0.5, 0.8 * min(low)), max(2.0, 1.25 * max(conv["largest"] for conv in convs)))
            axis.set_ylabel("singular value")
            axis.set_title(name, fontsize=10, loc="left", parse_math=False)
            _name_layers(axis, [conv["name"] for conv in convs])
    return figure


def norms_by_layer(reports: Reports) -> Figure:
    """Of the signal forward and of the gradient backward, each against its own start."""
    with _axes(3.0, 2) as (figure, (forward, backward)):
        for number, (name, report) in enumerate(reports.items()):
            signal = report["signal"]
            x = [i / max(1, len(signal) - 1) for i in range(len(signal))]
            first, last = signal[0]["forward"], signal[-1]["backward"]
            style = {**_style(number), "markevery": max(1, len(x) // 25), "linewidth": 1.4, "label": name}
            forward.plot(x, [max(layer["forward"] / first, 1e-12) for layer in signal], **style)
            backward.plot(x, [max(layer["backward"] / last, 1e-12) if last else 1.0 for layer in signal], **style)
        for axis, what in ((forward, "signal / first layer's"), (backward, "gradient / last layer's")):
            axis.set_yscale("log")
            axis.axhline(1, color="#888888", linewidth=0.8)
            low, high = axis.get_ylim()
            axis.set_ylim(min(low, 0.1), max(high, 10))
            axis.set_ylabel(what)
        backward.set_xlabel("depth: 0 the first activation, 1 the last")
        _legend(forward, reports)
    return figure


def penalty_by_layer(reports: Reports) -> Figure:
    """Of each convolution that is penalised, down to a millionth of the largest."""
    floor = 1e-6 * max([conv["penalty"] or 0 for report in reports.values() for conv in report["convs"]] or [0]) or 1e-6
    with _axes(3.4) as (figure, (axis,)):
        names: list[str] = []
        for number, (name, report) in enumerate(reports.items()):
            counted = [conv for conv in report["convs"] if conv["penalty"] is not None]
            if len(counted) > len(names):
                names = [conv["name"] for conv in counted]
            values = [max(conv["penalty"], floor) for conv in counted]
            axis.plot(values, linewidth=1.2, label=name, **_style(number))
        axis.set_yscale("log")
        axis.set_ylabel("penalty")
        _name_layers(axis, names)
        _legend(axis, reports)
    return figure


def shifts_and_multipliers(reports: Reports) -> Figure | None:
    """The middle nine tenths of the shifts of each activation, and each block's multiplier; None: there are none."""
    has_shifts = any(report["shifts"] for report in reports.values())
    has_multipliers = any(report["multipliers"] for report in reports.values())
    if not (has_shifts or has_multipliers):
        return None
    with _axes(3.2, has_shifts + has_multipliers) as (figure, axes):
        for number, (name, report) in enumerate(reports.items()):
            style = {**_style(number), "linewidth": 1.2, "label": name}
            if has_shifts and report["shifts"]:
                rows = [sorted(values) for values in report["shifts"].values()]
                low, middle, high = ([row[int(q * (len(row) - 1))] for row in rows] for q in (0.05, 0.5, 0.95))
                axes[0].fill_between(range(len(rows)), low, high, color=style["color"], alpha=0.2, linewidth=0)
                axes[0].plot(middle, **style)
                if len(rows) >= max(len(other["shifts"]) for other in reports.values()):
                    _name_layers(axes[0], list(report["shifts"]))
            if has_multipliers and report["multipliers"]:
                axes[-1].plot(list(report["multipliers"].values()), **style)
                if len(report["multipliers"]) >= max(len(other["multipliers"]) for other in reports.values()):
                    _name_layers(axes[-1], list(report["multipliers"]))
        if has_shifts:
            axes[0].set_ylabel("SReLU's shift b")
        if has_multipliers:
            axes[-1].axhline(0, color="#888888", linewidth=0.8)
            axes[-1].set_ylabel("residual multiplier s")
        _legend(axes[0], reports)
    return figure


def jacobian_by_part(reports: Reports) -> Figure:
    """From the smallest to the largest singular value of each part's Jacobian."""
    with _axes(3.2) as (figure, (axis,)):
        parts = list(dict.fromkeys(row["part"] for report in reports.values() for row in report["jacobian"]))
        wide = 0.7 / len(reports)
        for number, (name, report) in enumerate(reports.items()):
            rows = {row["part"]: row for row in report["jacobian"]}
            x = [i + (number - (len(reports) - 1) / 2) * wide for i, part in enumerate(parts) if part in rows]
            low = [max(rows[part]["smallest"], 1e-6) for part in parts if part in rows]
            high = [max(rows[part]["largest"], 1e-6) for part in parts if part in rows]
            style = _style(number)
            axis.vlines(x, low, high, color=style["color"], linewidth=2)
            axis.plot(x, high, linestyle="", label=name, **style)
            axis.plot(x, low, linestyle="", fillstyle="none", **style)
        axis.axhline(1, color="#888888", linewidth=0.8)
        axis.set_yscale("log")
        axis.set_ylabel("singular value of the Jacobian")
        axis.set_xticks(range(len(parts)), parts)
        _legend(axis, reports)
    return figure
