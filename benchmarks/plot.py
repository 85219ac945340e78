"""The figure of the penalty's time against width and depth."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import Row

# Distinguishable in greyscale and for colour-blind readers
BASELINE = {"color": "#d55e00", "marker": "s", "label": "padded convolution, as published"}
OURS = {"color": "#0072b2", "marker": "o", "label": "this code"}


def draw_scaling(by_width: dict[int, Row], by_depth: dict[int, Row], file: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("the figure needs matplotlib: pip install -e '.[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axis, rows, label in (
        (axes[0], by_width, "channels of one 3x3 convolution"),
        (axes[1], by_depth, "depth of a CIFAR ISONet"),
    ):
        axis.plot(list(rows), [row.baseline for row in rows.values()], **BASELINE)
        axis.plot(list(rows), [row.value for row in rows.values()], **OURS)
        for x, row in rows.items():
            axis.annotate(f"{row.ratio:.1f}x", (x, row.value), xytext=(0, -14), textcoords="offset points", ha="center")
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="penalty and gradient, ms")
        axis.set_xticks(list(rows), [str(x) for x in rows])
        axis.minorticks_off()
        axis.margins(0.1, 0.15)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
