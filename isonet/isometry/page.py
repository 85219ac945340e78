"""The isometry report as one HTML page without external files."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from typing import Any

from isonet.plots import isometry as plots
from isonet.plots.isometry import Reports

_STYLE = """
body { margin: 0 auto; max-width: 54rem; padding: 1rem 1rem 4rem; font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
img { width: 100%; min-width: 40rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #dddddd; vertical-align: bottom; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.small { color: #555555; font-size: .9rem; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>An <em>isometry</em> keeps lengths: a signal leaves each layer as long as it came in, and so does the gradient on its
way back. Then neither grows nor fades over any number of layers, and the network trains without normalisation. This
page measures how close {what} is to an isometry. A layer stretches each direction of its input by a factor, its
<em>singular value</em>; an isometry has all of them at 1.</p>
{body}
</body>
</html>
"""

# Title, function that draws, explanation
_SECTIONS = (
    (
        "Each convolution",
        plots.spectrum_by_layer,
        """The thin line spans the singular values of the convolution on its feature map, with circular padding; the
        thick part spans the middle half, and the dot is the median. The grey line is 1. Values below 0.001 are drawn at
        0.001. A convolution with fewer outputs than inputs maps some directions to 0; these do not count.""",
    ),
    (
        "The signal forward, the gradient backward",
        plots.norms_by_layer,
        """Length of the signal after each activation relative to the first one, and of the gradient of the loss
        relative to the last one, as means over the images. Changes of width and resolution are included. A line that
        falls or rises by many powers of ten indicates a network that does not train.""",
    ),
    (
        "Whole stages",
        plots.jacobian_by_part,
        """Largest (filled) and smallest (hollow) singular value of the Jacobian of each stage at one image, activations
        included. They are approached from within, so the true range may be wider; the table gives the uncertainty.
        Pooling maps many directions to 0. Values below 1e-6 are drawn at 1e-6.""",
    ),
    (
        "What SReLU and the residual branches have learned",
        plots.shifts_and_multipliers,
        """SReLU passes values above its shift b and clips the others to b: the shift starts at -1, where little is
        clipped, and SReLU with b = 0 is ReLU. The line is the median over channels, the band the middle nine tenths.
        A residual multiplier s starts at 0 in R-ISONet, where the block is its shortcut; its size measures how much the
        branch contributes.""",
    ),
    (
        "The penalty, layer by layer",
        plots.penalty_by_layer,
        """The orthogonality penalty 1/2 sum ||G[d] - [d = 0] I||^2 of each convolution that it includes, without its
        coefficient. It is 0 if the convolution is orthogonal. Values below a millionth of the largest are drawn at the
        lower edge.""",
    ),
)


def page(reports: Reports) -> str:
    """The page, with a table and five figures. reports: by the network's name, as ``measure`` returns them."""
    names = html.escape(", ".join(reports))
    what = names if len(reports) == 1 else f"each of {names}"
    return _PAGE.format(title=f"Isometry report: {names}", style=_STYLE, what=what, body="\n".join(_body(reports)))


def _body(reports: Reports) -> Iterator[str]:
    yield _table(
        ["", "parameters", "convs", "singular values within 0.1 of 1", "smallest", "largest", "penalty",
         "signal, last / first", "gradient, first / last"],
        [[name, *_summary(report)] for name, report in reports.items()],
    )  # fmt: skip
    for title, draw, text in _SECTIONS:
        if picture := draw(reports):
            image = f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
            yield f'<h2>{title}</h2>\n<p>{text}</p>\n<div class="scroll">{image}</div>'
        if draw is plots.jacobian_by_part:
            yield _jacobian_table(reports)
    settings = (line for name, report in reports.items() for line in _settings(name, report))
    yield "<h2>How it was measured</h2>\n<p class='small'>" + "<br>".join(map(html.escape, settings)) + "</p>"


def _summary(report: dict[str, Any]) -> list[str]:
    convs, first, last = report["convs"], report["signal"][0], report["signal"][-1]
    near = sum(conv["near_1"] * conv["singular_values"] for conv in convs)
    return [
        f"{report['parameters']:,}",
        str(len(convs)),
        f"{100 * near / sum(conv['singular_values'] for conv in convs):.1f} %",
        _number(min(conv["smallest"] for conv in convs)),
        _number(max(conv["largest"] for conv in convs)),
        _number(sum(conv["penalty"] or 0 for conv in convs)),
        _number(last["forward"] / first["forward"]),
        _number(first["backward"] / last["backward"]) if last["backward"] else "no gradient",
    ]


def _jacobian_table(reports: Reports) -> str:
    numbers = ("smallest", "smallest_error", "largest", "largest_error")
    rows = [
        [f"{name}, {row['part']}", *(_number(row[key]) for key in numbers), str(row["steps"])]
        for name, report in reports.items()
        for row in report["jacobian"]
    ]
    return _table(["part", "smallest", "one lies within", "largest", "one lies within", "steps"], rows)


def _settings(name: str, report: dict[str, Any]) -> Iterator[str]:
    count, _, height, width = report["images"]
    yield f"{name}: {report['source']}; {count} images of {height} x {width} pixels from {report['data']}"
    yield f"{name}: {report['versions']}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{cells}</tr>\n{lines}</table></div>'


def _number(value: float) -> str:
    return "< 1e-9" if 0 < value < 1e-9 else f"{value:.3g}"
