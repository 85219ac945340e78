"""The isometry report as one HTML page, which needs nothing but itself."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from typing import Any

from isonet.isometry import pictures
from isonet.isometry.pictures import Reports
from isonet.plots import as_png

_STYLE = """
body { margin: 0 auto; max-width: 54rem; padding: 1rem 1rem 4rem; color: #1a1a1a; background: #ffffff;
       font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
img { width: 100%; min-width: 40rem; height: auto; margin: .5rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #dddddd; vertical-align: bottom; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
p.small, td.small { color: #555555; font-size: .9rem; }
code { font-size: .9em; }
"""

_INTRODUCTION = """
A network is an <em>isometry</em> where it keeps lengths: a signal leaves each layer as long as it came in, and so does
the gradient on its way back. Then neither grows nor fades over any number of layers, and the network trains without
normalisation. This page measures how near {what} is to that. A layer stretches each direction of its
input by a factor of its own, its <em>singular values</em>: an isometry has all of them at 1.
"""

_SECTIONS = {
    "layers": (
        "Each convolution",
        """
        A thin line from the smallest to the largest singular value of the convolution, on the feature map that it reads
        and as if the picture's edges met; the thick part holds the middle half of them, the dot is the median. The grey
        line is 1. Values below 0.001 are drawn there. A convolution to fewer values than it reads must forget some
        directions: these do not count.
        """,
    ),
    "signal": (
        "The signal forward, the gradient backward",
        """
        Length of the signal after each activation against that after the first, and of the loss's gradient against that
        at the last, each a mean over the images. Both include what is meant to happen at a change of width or
        resolution. A line that falls or climbs by many powers of ten is a network that does not train.
        """,
    ),
    "jacobian": (
        "Whole stages",
        """
        What a small change of a stage's input does to its output: largest (filled) and smallest (hollow) singular value
        of the Jacobian at one image, activations included. They are found step by step from within, so that the true
        range is as wide or wider; the table tells how sure the ends are. A pool or an average forgets much by its
        nature. Values below 1e-6 are drawn there.
        """,
    ),
    "shifts": (
        "What SReLU and the residual branches have learned",
        """
        SReLU passes what lies above its shift b and cuts the rest: at -1, where it starts, it cuts little, at 0 it is
        ReLU. The line is the median over channels, the band the middle nine tenths. A residual multiplier s starts at 0
        in R-ISONet, where the block does nothing: its size says how much the branch has come to do.
        """,
    ),
    "penalty": (
        "The penalty, layer by layer",
        """
        The orthogonality penalty 1/2 sum ||G[d] - [d = 0] I||^2 of each convolution that it counts, without its
        coefficient: 0 where the convolution keeps lengths exactly. What is 0, or a millionth of the largest, is drawn
        at the lower edge.
        """,
    ),
}


def page(reports: Reports) -> str:
    """The whole page. reports: by name, as ``measure`` gives them."""
    names = list(reports)
    what = html.escape(names[0]) if len(names) == 1 else "each of " + html.escape(", ".join(names))
    title = "Isometry report: " + html.escape(", ".join(names))
    body = "\n".join(_body(reports))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p>{_INTRODUCTION.format(what=what)}</p>\n"
        f"{body}\n</body>\n</html>\n"
    )


def _body(reports: Reports) -> Iterator[str]:
    yield _table(
        ["", "parameters", "convs", "singular values within 0.1 of 1", "smallest", "largest", "penalty",
         "signal, last / first", "gradient, first / last"],
        [[name, *_summary(report)] for name, report in reports.items()],
    )  # fmt: skip
    figures = {
        "layers": pictures.spectrum_by_layer(reports),
        "signal": pictures.norms_by_layer(reports),
        "jacobian": pictures.jacobian_by_part(reports),
        "shifts": pictures.shifts_and_multipliers(reports),
        "penalty": pictures.penalty_by_layer(reports),
    }
    for key, (title, text) in _SECTIONS.items():
        figure = figures[key]
        if figure is None:
            continue
        data = base64.b64encode(as_png(figure)).decode()
        image = f'<img alt="{title}" src="data:image/png;base64,{data}">'
        yield f'<h2>{title}</h2>\n<p>{text.strip()}</p>\n<div class="scroll">{image}</div>'
        if key == "jacobian":
            yield _jacobian_table(reports)
    yield "<h2>How it was measured</h2>\n<p class='small'>" + "<br>".join(map(html.escape, _settings(reports))) + "</p>"


def _summary(report: dict[str, Any]) -> list[str]:
    convs, signal = report["convs"], report["signal"]
    total = sum(conv["singular_values"] for conv in convs)
    near = sum(conv["near_1"] * conv["singular_values"] for conv in convs) / total
    penalty = sum(conv["penalty"] or 0 for conv in convs)
    last = signal[-1]["backward"]
    return [
        f"{report['parameters']:,}", str(len(convs)), f"{100 * near:.1f} %",
        _number(min(conv["smallest"] for conv in convs)), _number(max(conv["largest"] for conv in convs)),
        _number(penalty), _number(signal[-1]["forward"] / signal[0]["forward"]),
        _number(signal[0]["backward"] / last) if last else "no gradient",
    ]  # fmt: skip


def _jacobian_table(reports: Reports) -> str:
    rows = [
        [f"{name}, {row['part']}" if len(reports) > 1 else row["part"], _number(row["smallest"]),
         _number(row["smallest_error"]), _number(row["largest"]), _number(row["largest_error"]), str(row["steps"])]
        for name, report in reports.items() for row in report["jacobian"]
    ]  # fmt: skip
    return _table(["part", "smallest", "one lies within", "largest", "one lies within", "steps"], rows)


def _settings(reports: Reports) -> Iterator[str]:
    for name, report in reports.items():
        count, _, height, width = report["images"]
        yield f"{name}: {report['source']}; {count} images of {height} x {width} pixels from {report['data']}"
        yield f"{name}: {report['versions']}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{cells}</tr>\n{lines}</table></div>'


def _number(value: float) -> str:
    return "< 1e-9" if 0 < value < 1e-9 else f"{value:.3g}"
