"""The pictures of RESULTS.md. Drawing takes matplotlib: pip install -e '.[plot]'."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from isonet.plots import COLOURS, MARKERS, as_png, look, new_figure, plain_numbers, require_matplotlib, style


def norms_picture(variants: dict[str, dict[str, list[float | None]]]) -> bytes:
    """PNG. Norms of the signal and of its gradient over the layers, as far as they are finite and not 0."""
    require_matplotlib("the norms")
    with style(10):
        figure = new_figure(1500, 650)
        panels = (("forward", "norm of the signal"), ("backward", "norm of the loss's gradient"))
        for place, (key, label) in enumerate(panels, start=1):
            axis = figure.add_subplot(1, 2, place)
            for number, (name, found) in enumerate(variants.items()):
                values = [value or math.nan for value in found[key]]
                every = len(values) // 12
                # Where curves coincide, the first one is on top, and the markers stand apart
                first = number * every // len(variants)
                axis.plot(values, **look(number), label=name, zorder=9 - number, markevery=(first, every))
            axis.set_yscale("log")
            plain_numbers(axis.yaxis)
            axis.set_xlabel("activation, from the stem to the head")
            axis.set_title(label)
            axis.legend(loc="lower left" if key == "forward" else "upper right")
        return as_png(figure)


def curves_picture(curves: Mapping[str, Sequence[float]], seconds: Mapping[str, float]) -> bytes:
    """PNG. Top-1 in percent against epochs, and against minutes: ``seconds`` of an epoch of each curve."""
    require_matplotlib("the curves")
    with style(10):
        figure = new_figure(1500, 800)
        axes: Any = [figure.add_subplot(1, 2, place) for place in (1, 2)]
        networks = list(dict.fromkeys(_network(name) for name in curves))
        drawn: list[str] = []
        for name, top1 in curves.items():
            network = _network(name)  # gives the colour; its rows differ in marker and line
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


def _network(name: str) -> str:
    """The first word of a row's title, such as ISONet-20."""
    return name.partition(" ")[0].rstrip(",")
