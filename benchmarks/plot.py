"""Draw the time of the penalty against width and depth."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import Row
from isonet.plots import as_png, look, new_figure, plain_numbers, require_matplotlib, style


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
