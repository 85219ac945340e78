"""The style, the palette and the PNG output that all figures share.

``runs`` draws metrics, ``sweep`` the accuracies of a sweep, ``isometry`` the figures of the isometry report.
matplotlib is an optional dependency, so only the functions that draw import it.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from isonet.errors import UserError
from isonet.extras import install

# The colour-blind palette of Okabe and Ito, dark colours first, without its yellow, which is invisible on white
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_DPI = 150

MISSING = f"matplotlib is not installed ({install('plot')})"

Row = dict[str, float]


def have_matplotlib() -> bool:
    """Whether matplotlib is installed. Loads its renderer, so that the first figure takes no longer than later ones."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def require_matplotlib(what: str) -> None:
    """Raise ``UserError`` if matplotlib is missing; ``what`` names the figure in the message."""
    if not have_matplotlib():
        raise UserError(f"{what} is not drawn: {MISSING}")


@contextmanager
def style(size: float) -> Iterator[None]:
    """Apply the common style, with text of ``size`` points, to figures that are made and drawn within the block.

    Mathematical text is off, so a ``$`` in the name of a run is drawn as a ``$``.
    """
    import matplotlib

    small = size - 1
    settings = {
        "font.size": size, "axes.titlesize": size, "axes.labelsize": size, "axes.titlelocation": "left",
        "legend.fontsize": small, "xtick.labelsize": small, "ytick.labelsize": small, "text.parse_math": False,
        "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True, "lines.linewidth": 1.4, "lines.markersize": 4,
        # inches around a panel, because tick labels extend beyond the measured area
        "figure.constrained_layout.w_pad": 0.1, "figure.constrained_layout.h_pad": 0.1, "axes.spines.top": False,
        "axes.spines.right": False, "legend.framealpha": 0.8, "legend.edgecolor": "none",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: int, height: int) -> Any:
    """Return an empty ``matplotlib.figure.Figure`` that leaves room for all text. width, height: its size in pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout="constrained")


def as_png(figure: Any) -> bytes:
    """Render ``figure`` as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font may lack a character in the name of a run
        figure.savefig(buffer, format="png", dpi=_DPI, pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def look(number: int) -> dict[str, Any]:
    """Return the colour and marker of line ``number``. The first 42 differ, and the first six differ in greyscale."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def legend_below(figure: Any, handles: Sequence[Any], names: Sequence[str], columns: int) -> None:
    """Add a legend under all panels."""
    blanks = [" "] * len(names)  # matplotlib leaves out a name that starts with an underscore
    legend = figure.legend(handles, blanks, loc="outside lower center", ncols=columns)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def log_scale(axis: Any, low: float, high: float) -> None:
    """Make the y axis logarithmic from ``low`` to ``high``. A range below two decades has ticks at 1, 2 and 5.

    Values outside the range are not drawn.
    """
    from matplotlib.ticker import LogLocator

    axis.set_yscale("log", nonpositive="mask")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    plain_numbers(axis.yaxis)


def at_least(axis: Any, span: float) -> None:
    """Make the y axis span at least ``span``, so that the plot does not magnify insignificant differences."""
    low, high = axis.get_ylim()
    if high - low < span:
        axis.set_ylim((low + high - span) / 2, (low + high + span) / 2)


def plain_numbers(axis: Any) -> None:
    """Label the ticks of an x or y axis in the style of 0.02 and 1e-5, without minor ticks."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: short(float(f"{value:.6g}"))))
    axis.set_minor_locator(NullLocator())


def short(number: float) -> str:
    """Return the shortest text that reads back as ``number``: 1e-4, 0.02, 3e6."""
    plain = repr(float(number)).removesuffix(".0")
    powers = f"{Decimal(plain).normalize():e}".replace("e+", "e")
    return min(plain, powers, key=len)  # if the lengths are equal, the plain form
