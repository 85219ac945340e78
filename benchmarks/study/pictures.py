"""The figures of RESULTS.md and of README.md. Drawing needs matplotlib: pip install -e '.[plot]'."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from isonet.plots import COLOURS, MARKERS, as_png, look, new_figure, plain_numbers, require_matplotlib, style


def norms_picture(variants: dict[str, dict[str, list[float | None]]]) -> bytes:
    """Draw the norms of signal and gradient over the layers, and return a PNG. Norms of 0 or None are left out."""
    require_matplotlib("the norms")
    with style(10):
        figure = new_figure(1500, 650)
        panels = (("forward", "norm of the signal"), ("backward", "norm of the loss's gradient"))
        for place, (key, label) in enumerate(panels, start=1):
            axis = figure.add_subplot(1, 2, place)
            for number, (name, norms) in enumerate(variants.items()):
                values = [value or math.nan for value in norms[key]]
                every = len(values) // 12
                # Where curves coincide, the first curve is on top, and the markers do not overlap
                first = number * every // len(variants)
                axis.plot(values, **look(number), label=name, zorder=9 - number, markevery=(first, every))
            axis.set_yscale("log")
            plain_numbers(axis.yaxis)
            axis.set_xlabel("activation, from the stem to the head")
            axis.set_title(label)
            axis.legend(loc="lower left" if key == "forward" else "upper right")
        return as_png(figure)


def curves_picture(curves: Mapping[str, Sequence[float]], seconds: Mapping[str, float]) -> bytes:
    """Draw top-1 in percent against epochs and against minutes, and return a PNG.

    seconds: the time of one epoch of each row.
    """
    require_matplotlib("the curves")
    with style(10):
        figure = new_figure(1500, 800)
        axes: Any = [figure.add_subplot(1, 2, place) for place in (1, 2)]
        networks = list(dict.fromkeys(_network(name) for name in curves))
        drawn: list[str] = []
        for name, top1 in curves.items():
            network = _network(name)  # determines the colour; rows of one network differ in marker and line
            number = drawn.count(network)
            drawn.append(network)
            look = {"color": COLOURS[networks.index(network)], "marker": MARKERS[number], "label": name,
                    "linestyle": ("-", "--", ":", "-.")[number % 4]}  # fmt: skip
            epochs = range(1, len(top1) + 1)
            axes[0].plot(epochs, top1, **look)
            axes[1].plot([epoch * seconds[name] / 60 for epoch in epochs], top1, **look)
        axes[0].set_xlabel("epoch")
        axes[1].set_xlabel("minutes of training and validation")
        for axis in axes:
            axis.set_ylabel("top-1, %")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return as_png(figure)


def vanilla_picture(top1: Mapping[str, Sequence[float]], gradients: Mapping[str, Sequence[float | None]]) -> bytes:
    """Draw the figure of README.md, and return a PNG.

    Left: top-1 in percent of a vanilla network against epochs, complete and without each part. Right: the norm of the
    gradient over the layers of a very deep network at initialisation. Each curve has a label beside it.
    """
    require_matplotlib("the figure of README.md")
    with style(10.5):
        figure = new_figure(1500, 560)
        left, right = (figure.add_subplot(1, 2, place) for place in (1, 2))
        best = max(values[-1] for values in top1.values())
        for number, (name, values) in enumerate(top1.items()):
            look = {"color": COLOURS[number], "marker": MARKERS[number], "linewidth": 2}
            left.plot(range(1, len(values) + 1), values, **look)
            shift = 6 if values[-1] == best else -6  # keeps the labels of neighbouring curves apart
            _label(left, name, (len(values), values[-1]), (9, shift), COLOURS[number])
        left.set_title("ISONet-56 in three epochs of CIFAR-10", loc="left")
        left.set(xlabel="epoch", xlim=(0.85, 5.6), xticks=(1, 2, 3), ylabel="top-1, %", ylim=(0, 60))
        lowest = min(gradients, key=lambda name: gradients[name][350] or math.inf)  # its label is below it
        for number, (name, norms) in enumerate(gradients.items()):
            colour = COLOURS[(0, 1, 4)[number]]  # black, not the colour of another part in the panel on the left
            right.plot([norm or math.nan for norm in norms], color=colour, linewidth=2)
            _label(right, name, (350, norms[350]), (25, -14) if name == lowest else (6, 14), colour)
        right.set_title("ISONet-1202 at initialisation", loc="left")
        right.set_yscale("log")
        plain_numbers(right.yaxis)
        right.set(xlabel="layer", ylabel="norm of the gradient", ylim=(1e-21, 1e45))
        return as_png(figure)


def _label(axis: Any, text: str, point: tuple[float, float | None], offset: tuple[int, int], colour: str) -> None:
    axis.annotate(text, point, xytext=offset, textcoords="offset points", va="center", color=colour)


def _network(name: str) -> str:
    """Return the first word of a row's title, e.g. ISONet-20."""
    return name.partition(" ")[0].rstrip(",")
