"""The figures of the isometry report. ``Reports`` maps a network to the result of ``isonet.isometry.measure``."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from isonet.plots import log_scale, look, new_figure

Reports = dict[str, dict[str, Any]]

_WIDTH = 1200  # pixels
_MOST_NAMES = 28  # layer names along the x axis


def spectrum_by_layer(reports: Reports) -> Any:
    """Draw a panel per network: the range of each convolution's singular values, thick between the quartiles."""
    figure, axes = _panels(540, len(reports))
    for number, (axis, (name, report)) in enumerate(zip(axes, reports.items(), strict=True)):
        convs, colour = report["convs"], look(number)["color"]
        x = range(len(convs))
        low, high = ([max(conv[key], 1e-3) for conv in convs] for key in ("smallest", "largest"))
        quarter, median, three_quarters = ([max(conv["quantiles"][i], 1e-3) for conv in convs] for i in (1, 2, 3))
        axis.vlines(x, low, high, color=colour, linewidth=1.2)
        axis.vlines(x, quarter, three_quarters, color=colour, linewidth=4, alpha=0.6)
        axis.plot(x, median, "o", color="black", markersize=3)
        _log_around_1(axis, "singular value", min(0.5, 0.8 * min(low)), max(2.0, 1.25 * max(high)))
        axis.set_title(name)
        _name_layers(axis, [conv["name"] for conv in convs])
    return figure


def norms_by_layer(reports: Reports) -> Any:
    """Draw the signal's length relative to the first layer, and the gradient's length relative to the last layer."""
    figure, (forward, backward) = _panels(450, 2)
    for number, (name, report) in enumerate(reports.items()):
        signal = report["signal"]
        x = [i / max(1, len(signal) - 1) for i in range(len(signal))]
        for axis, key, start in ((forward, "forward", signal[0]), (backward, "backward", signal[-1])):
            y = [max(layer[key] / start[key], 1e-12) if start[key] else 1.0 for layer in signal]
            axis.plot(x, y, label=name, markevery=max(1, len(x) // 25), **look(number))
    for axis, label in ((forward, "signal / first layer's"), (backward, "gradient / last layer's")):
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        _log_around_1(axis, label, min(low, 0.1), max(high, 10))
    backward.set_xlabel("depth: 0 the first activation, 1 the last")
    _add_legend(forward)
    return figure


def jacobian_by_part(reports: Reports) -> Any:
    """Draw the largest (filled) and the smallest (hollow) singular value of each part's Jacobian."""
    figure, (axis,) = _panels(480)
    parts = list(dict.fromkeys(row["part"] for report in reports.values() for row in report["jacobian"]))
    for number, (name, report) in enumerate(reports.items()):
        shift = 0.7 * (number - (len(reports) - 1) / 2) / len(reports)
        x = [parts.index(row["part"]) + shift for row in report["jacobian"]]
        low, high = ([max(row[key], 1e-6) for row in report["jacobian"]] for key in ("smallest", "largest"))
        axis.vlines(x, low, high, color=look(number)["color"], linewidth=2)
        axis.plot(x, high, linestyle="", label=name, **look(number))
        axis.plot(x, low, linestyle="", fillstyle="none", **look(number))
    axis.set_yscale("log")
    _log_around_1(axis, "singular value of the Jacobian", *axis.get_ylim())
    axis.set_xticks(range(len(parts)), parts)
    _add_legend(axis)
    return figure


def shifts_and_multipliers(reports: Reports) -> Any:
    """Median and middle nine tenths of each SReLU's shifts, and each block's multiplier. None if there are none."""
    labels = {"shifts": "SReLU's shift b", "multipliers": "residual multiplier s"}
    labels = {key: label for key, label in labels.items() if any(report[key] for report in reports.values())}
    if not labels:
        return None
    figure, axes = _panels(480, len(labels))
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        _lines_by_layer(axis, label, {name: report[key] for name, report in reports.items()})
        if key == "multipliers":
            axis.axhline(0, color="#888888", linewidth=0.8)
    _add_legend(axes[0])
    return figure


def penalty_by_layer(reports: Reports) -> Any:
    """Draw the penalty of each convolution that has one. Values below a millionth of the largest are raised to that."""
    largest = max((conv["penalty"] or 0 for report in reports.values() for conv in report["convs"]), default=0)
    floor = 1e-6 * largest or 1e-6
    penalties = {
        name: {conv["name"]: max(conv["penalty"], floor) for conv in report["convs"] if conv["penalty"] is not None}
        for name, report in reports.items()
    }
    figure, (axis,) = _panels(510)
    _lines_by_layer(axis, "penalty", penalties)
    axis.set_yscale("log")
    log_scale(axis, *axis.get_ylim())
    _add_legend(axis)
    return figure


def _panels(height: int, count: int = 1) -> tuple[Any, Sequence[Any]]:
    """Return a figure and its panels, one above the other, each ``height`` pixels high."""
    figure = new_figure(_WIDTH, height * count)
    return figure, figure.subplots(count, 1, squeeze=False)[:, 0]


def _log_around_1(axis: Any, label: str, low: float, high: float) -> None:
    axis.axhline(1, color="#888888", linewidth=0.8)
    log_scale(axis, low, high)
    axis.set_ylim(low, high)
    axis.set_ylabel(label)


def _lines_by_layer(axis: Any, label: str, networks: Mapping[str, Mapping[str, float | list[float]]]) -> None:
    """Draw a line per network at the median of the values of each layer, in a band of the middle nine tenths.

    The layers of the deepest network are first, so that equal layers have the same place.
    """
    layers = list(dict.fromkeys(itertools.chain(*sorted(networks.values(), key=len, reverse=True))))
    for number, (name, values) in enumerate(networks.items()):
        x = [layers.index(layer) for layer in values]
        rows = [sorted(value) if isinstance(value, list) else [value] for value in values.values()]
        low, middle, high = ([row[int(q * (len(row) - 1))] for row in rows] for q in (0.05, 0.5, 0.95))
        if values:
            axis.fill_between(x, low, high, color=look(number)["color"], alpha=0.2, linewidth=0)
            axis.plot(x, middle, label=name, **look(number))
    axis.set_ylabel(label)
    _name_layers(axis, layers)


def _name_layers(axis: Any, names: Sequence[str]) -> None:
    """Write as many layer names as are legible along the x axis, without the repeated ``.f``."""
    places = range(0, len(names), -(-len(names) // _MOST_NAMES))
    axis.set_xticks(places, [names[i].replace(".f.", ".") for i in places], rotation=90, fontsize=7)
    axis.set_xlim(-0.7, len(names) - 0.3)


def _add_legend(axis: Any) -> None:
    """Add a legend above the panel if there are several networks."""
    names = axis.get_legend_handles_labels()[1]
    if len(names) > 1:
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(4, len(names)))
