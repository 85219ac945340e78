"""The figures of the isometry report. ``Reports`` maps a network to the result of ``isonet.isometry.measure``.

All networks share the axes of a quantity. A hollow marker is a bound on a value that is too small or not determined.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isonet.plots import at_least, log_scale, look, new_figure

Reports = dict[str, dict[str, Any]]

LOWEST_SINGULAR, LOWEST_NORM, LOWEST_PENALTY = 1e-3, 1e-12, 1e-6  # smaller values are drawn at these bounds
_WIDTH = 1200  # pixels
_MOST_NAMES = 28  # layer names along the x axis
_SHIFTS = 0.2  # the smallest range of shifts to draw; a smaller range would magnify the first steps of training


def spectrum_by_layer(reports: Reports) -> Any:
    """Draw a panel per network with the range of each convolution's singular values, thick between the quartiles.

    Values that cannot be 1 (``isonet.isometry.measure.kept_values``) are dotted.
    """
    figure, axes = _panels(540, len(reports))
    layers = _in_order([conv["name"] for conv in report["convs"]] for report in reports.values())
    kept = [conv["kept"] for report in reports.values() for conv in report["convs"]]
    bottom = min(0.5, 0.8 * max(LOWEST_SINGULAR, min(each["smallest"] for each in kept)))
    top = max(2.0, 1.25 * max(each["largest"] for each in kept))
    for number, (axis, (name, report)) in enumerate(zip(axes, reports.items(), strict=True)):
        convs, colour = report["convs"], look(number)["color"]
        x, kept = [layers.index(conv["name"]) for conv in convs], [conv["kept"] for conv in convs]
        columns = zip(*((each["smallest"], *each["quantiles"][1:4]) for each in kept), strict=True)
        low, quarter, median, three_quarters = ([max(value, LOWEST_SINGULAR) for value in each] for each in columns)
        axis.vlines(x, low, [each["largest"] for each in kept], color=colour, linewidth=1.2)
        axis.vlines(x, quarter, three_quarters, color=colour, linewidth=4, alpha=0.6)
        axis.plot(x, median, "o", color="black", markersize=3)
        axis.vlines(x, [max(conv["smallest"], bottom / 2) for conv in convs], low, color=colour, linestyle=":")
        _log_around_1(axis, "singular value", bottom, top)
        axis.set_title(name)
        _name_layers(axis, layers)
    return figure


def norms_by_layer(reports: Reports) -> Any:
    """Draw the signal's length relative to the first layer, and the gradient's length relative to the last layer.

    The line passes through the activations of the trunk. Activations inside residual branches are hollow markers.
    """
    figure, (forward, backward) = _panels(450, 2)
    for axis, key, start, label in (
        (forward, "forward", 0, "signal / first layer's"), (backward, "backward", -1, "gradient / last layer's")
    ):  # fmt: skip
        for number, (name, report) in enumerate(reports.items()):
            signal, base = report["signal"], report["signal"][start][key]
            for branch, style in ((False, {}), (True, {"linestyle": "", "fillstyle": "none"})):
                places = [i for i, layer in enumerate(signal) if layer["branch"] == branch]
                if not places:
                    continue
                x = [i / max(1, len(signal) - 1) for i in places]
                values = [signal[i][key] / base if base else 0.0 for i in places]
                y = [max(value, LOWEST_NORM) if value else math.nan for value in values]
                title = name + branch * ", residual branches" + (not any(values)) * ": all are 0"
                axis.plot(x, y, label=title, markevery=max(1, len(x) // 25), **look(number), **style)
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        _log_around_1(axis, label, min(low, 0.1), max(high, 10))
        axis.set_xlim(-0.05, 1.05)
    backward.set_xlabel("depth: 0 the first activation, 1 the last")
    for axis in (forward, backward):
        _add_legend(axis)
    return figure


def jacobian_by_part(reports: Reports) -> Any:
    """Draw the largest and the smallest singular value of each part's Jacobian.

    A value that is not determined has a hollow marker at its bound, and a dotted line to the possible values.
    """
    figure, (axis,) = _panels(480)
    parts = list(dict.fromkeys(row["part"] for report in reports.values() for row in report["jacobian"]))
    rows = [row for report in reports.values() for row in report["jacobian"]]
    values = [value for row in rows for value in (lower_end(row), row["largest"]) if value > 0] or [1.0]
    bottom, top = min(*values, 0.5) / 3, max(*values, 2.0) * 3
    for number, (name, report) in enumerate(reports.items()):
        shift = 0.7 * (number - (len(reports) - 1) / 2) / len(reports)
        for row in report["jacobian"]:
            x, low, high = parts.index(row["part"]) + shift, lower_end(row), row["largest"]
            axis.vlines(x, low, high, color=look(number)["color"], linewidth=2)
            for key, y, end in (("largest", high, top), ("smallest", low, bottom)):
                bound = row[f"{key}_is_bound"]
                axis.plot(x, y, linestyle="", fillstyle="none" if bound else "full", **look(number))
                if bound:
                    axis.vlines(x, min(y, end), max(y, end), color=look(number)["color"], linewidth=1.2, linestyle=":")
        axis.plot([], linestyle="", label=name, **look(number))
    _log_around_1(axis, "singular value of the Jacobian", bottom, top)
    axis.set_xticks(range(len(parts)), parts)
    _add_legend(axis)
    return figure


def lower_end(row: Mapping[str, Any]) -> float:
    """Return the smallest singular value of a part's Jacobian or, if it is not determined, the upper bound on it."""
    return max(row["smallest"], row["rounding"]) if row["smallest_is_bound"] else row["smallest"]


def shifts_and_multipliers(reports: Reports) -> Any:
    """Median and middle nine tenths of each SReLU's shifts, and each block's multiplier. None if there are none."""
    labels = {"shifts": "SReLU's shift b", "multipliers": "residual multiplier s"}
    labels = {key: label for key, label in labels.items() if any(report[key] for report in reports.values())}
    if not labels:
        return None
    figure, axes = _panels(480, len(labels))
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        layers = _in_order(report[key] for report in reports.values())
        for number, (name, report) in enumerate(reports.items()):
            x = [layers.index(layer) for layer in report[key]]
            rows = [sorted(value) if isinstance(value, list) else [value] for value in report[key].values()]
            low, middle, high = ([row[int(q * (len(row) - 1))] for row in rows] for q in (0.05, 0.5, 0.95))
            if rows:
                axis.fill_between(x, low, high, color=look(number)["color"], alpha=0.2, linewidth=0)
                axis.plot(x, middle, label=name, **look(number))
        if key == "multipliers":
            axis.axhline(0, color="#888888", linewidth=0.8)
        else:
            at_least(axis, _SHIFTS)
        axis.set_ylabel(label)
        _name_layers(axis, layers)
    _add_legend(axes[0])
    return figure


def penalty_by_layer(reports: Reports) -> Any:
    """Draw the penalty of each convolution that has one. Smaller values than a millionth of the largest are hollow."""
    figure, (axis,) = _panels(510)
    penalties = {
        name: {conv["name"]: conv["penalty"] for conv in report["convs"] if conv["penalty"] is not None}
        for name, report in reports.items()
    }
    layers = _in_order(penalties.values())
    floor = LOWEST_PENALTY * max((value for each in penalties.values() for value in each.values()), default=0)
    floor = floor or LOWEST_PENALTY
    for number, (name, values) in enumerate(penalties.items()):
        x = [layers.index(layer) for layer in values]
        known = [value if value > floor else math.nan for value in values.values()]
        bounds = [math.nan if value > floor else floor for value in values.values()]
        axis.plot(x, known, linestyle="", label=name, **look(number))
        axis.plot(x, bounds, linestyle="", fillstyle="none", **look(number))
    axis.set_yscale("log")
    log_scale(axis, *axis.get_ylim())
    axis.set_ylabel("penalty")
    _name_layers(axis, layers)
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


def _in_order(networks: Iterable[Iterable[str]]) -> list[str]:
    """Return the layers of all networks in the order of computation. Layers of the same name have the same place."""
    layers: list[str] = []
    for names in networks:
        place = 0
        for name in names:
            if name not in layers:
                layers.insert(place, name)
            place = layers.index(name) + 1
    return layers


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
