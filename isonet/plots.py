"""What pictures of runs have in common: the panels, colours that everyone can tell apart, a figure as a file.

matplotlib is an extra, and so it is imported by the functions that draw, and nowhere at the top of a module.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from isonet.errors import UserError

# Okabe and Ito's palette for colour-blind eyes, the dark ones first, without the yellow that white paper swallows
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")  # of the first seven, of the next seven, and so on
DPI = 150

MISSING = "matplotlib is not installed (pip install 'isonet[plot]', or matplotlib)"

Row = dict[str, float]


@dataclass(frozen=True)
class Panel:
    """One quantity of a run against its epochs: two rows of metrics, or one."""

    label: str
    training: str  # key of metrics.jsonl
    validation: str | None = None
    drawstyle: str = "default"
    may_be_log: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.training, self.validation) if self.validation else (self.training,)


PANELS = {
    "cross_entropy": Panel("cross entropy, nats", "cross_entropy", "val_loss"),
    "penalty": Panel("orthogonality penalty", "penalty"),
    "top1": Panel("top-1 accuracy, %", "train_top1", "top1", may_be_log=False),
    "top5": Panel("top-5 accuracy, %", "train_top5", "top5", may_be_log=False),
    "learning_rate": Panel("learning rate", "learning_rate", drawstyle="steps-mid"),
}


def have_matplotlib() -> bool:
    """Whether pictures can be drawn. It loads what draws them, half a second that later pictures are spared."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def require_matplotlib(what: str) -> None:
    """Raise ``UserError`` where ``what`` cannot be drawn."""
    if not have_matplotlib():
        raise UserError(f"{what} is not drawn: {MISSING}")


@contextmanager
def style(size: float) -> Iterator[None]:
    """Text of ``size`` points, in which a $ of a run's name is no formula, in figures made within the block."""
    import matplotlib

    small = size - 1
    settings = {
        "font.size": size, "axes.titlesize": size, "axes.labelsize": size, "legend.fontsize": small,
        "xtick.labelsize": small, "ytick.labelsize": small, "text.parse_math": False, "axes.axisbelow": True,
        "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
        "lines.linewidth": 1.4, "lines.markersize": 4,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: int, height: int, fitted: bool = True) -> Any:
    """An empty figure of so many pixels. fitted: its texts are measured and given room, which takes its time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, layout="constrained" if fitted else None)
    FigureCanvasAgg(figure)  # which keeps its buffer, where a canvas made for each file takes megabytes anew
    engine: Any = figure.get_layout_engine()
    if engine:
        engine.set(w_pad=0.1, h_pad=0.1)  # inches: labels of ticks hang out of what is measured
    return figure


def as_png(figure: Any) -> bytes:
    """The bytes of the figure's file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the font lacks a letter of a run's name
        figure.savefig(buffer, format="png", dpi=DPI, pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def values_of(rows: Sequence[Row], key: str) -> list[float]:
    """The column ``key``; nan, which is not drawn, where a row lacks it."""
    return [row.get(key, math.nan) for row in rows]


def spans_decades(values: Sequence[float]) -> bool:
    """Whether values want a logarithmic axis: none below 0, and the largest ten times the smallest above it.

    A 0, such as of a penalty that is not computed, is then not drawn.
    """
    known = [value for value in values if value and not math.isnan(value)]
    return bool(known) and min(known) > 0 and max(known) >= 9.99 * min(known)


def scale_y(axis: Any, panel: Panel, rows: Sequence[Row]) -> None:
    """Name the axis; a logarithmic one where values span a decade or more and may be on it. Labels: 0.02, 1e-5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    values = [value for key in panel.keys for value in values_of(rows, key)]
    axis.set_ylabel(panel.label)
    axis.set_yscale("linear")
    locator: Any = MaxNLocator(nbins=7, steps=[1, 2, 5, 10])
    if panel.may_be_log and spans_decades(values):
        known = [value for value in values if value and not math.isnan(value)]
        axis.set_yscale("log")
        locator = LogLocator(subs=(1.0, 2.0, 5.0) if max(known) < 100 * min(known) else (1.0,))
    axis.yaxis.set_major_locator(locator)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(float(f"{value:.6g}"))))
    axis.yaxis.set_minor_locator(NullLocator())


def scale_epochs(axis: Any, last: int) -> None:
    """Whole epochs from 1, or a little before it, to the last."""
    from matplotlib.ticker import MaxNLocator

    margin = max(0.3, 0.02 * last)
    axis.set_xlim(1 - margin, max(last, 2) + margin)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")


def short(number: float) -> str:
    """The shortest text that is read as this number: 1e-4, 0.02, 3e6."""
    plain = repr(float(number)).removesuffix(".0")
    if number == 0 or not math.isfinite(number):
        return plain
    exact = next(text for digits in range(17) if float(text := f"{number:.{digits}e}") == number)
    mantissa, exponent = exact.split("e")
    powers = f"{mantissa}e{int(exponent)}"
    return powers if len(powers) < len(plain) else plain
