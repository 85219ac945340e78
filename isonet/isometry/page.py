"""The isometry report as one HTML page without external files."""

import base64
import html
from collections.abc import Iterator
from typing import Any

from isonet.plots import as_png, style
from isonet.plots import isometry as plots
from isonet.plots.isometry import Reports

_STYLE = """
body { margin: 0 auto; max-width: 54rem; padding: 1rem 1rem 4rem; font: 1rem/1.55 system-ui, sans-serif; }
h2 { margin: 2.5rem 0 .5rem; }
img { width: 100%; min-width: 40rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #dddddd; vertical-align: bottom; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<h1>{title}</h1>
<p>An <em>isometry</em> keeps lengths: a signal has the same length before and after each layer, and so has the gradient
in the backward pass. Then neither grows nor fades over any number of layers, and the network trains without
normalisation. This page measures how close {what} is to an isometry. A layer stretches each direction of its input by a
factor, a <em>singular value</em> of the layer. All singular values of an isometry are 1.</p>
{body}
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
        """The length of the signal after each activation, relative to the first activation, and the length of the
        gradient of the loss, relative to the last activation, as means over the images. Changes of width and resolution
        are included. A line that falls or rises by many powers of ten indicates a network that does not train.""",
    ),
    (
        "Whole stages",
        plots.jacobian_by_part,
        """Largest (filled) and smallest (hollow) singular value of the Jacobian of each stage at one image, activations
        included. The computation approaches them from within, so the true range may be wider. The table gives the
        uncertainty. Pooling maps many directions to 0. Values below 1e-6 are drawn at 1e-6.""",
    ),
    (
        "What SReLU and the residual branches have learned",
        plots.shifts_and_multipliers,
        """SReLU passes values above its shift b and clips the others to b. The shift starts at -1, where few values are
        clipped. SReLU with b = 0 is ReLU. The line is the median over the channels, and the band contains the middle
        nine tenths. A residual multiplier s starts at 0 in R-ISONet, where the block equals its shortcut. The magnitude
        of s measures how much the branch contributes.""",
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
    """The page, with two tables and five figures. reports: the result of ``measure`` for each network, by name."""
    names = html.escape(", ".join(reports))
    what = names if len(reports) == 1 else f"each of {names}"
    with style(9.0):
        body = "\n".join(_body(reports))
    return _PAGE.format(title=f"Isometry report: {names}", style=_STYLE, what=what, body=body)


def _body(reports: Reports) -> Iterator[str]:
    yield _table([_summary(name, report) for name, report in reports.items()])
    for title, draw, text in _SECTIONS:
        if figure := draw(reports):
            image = f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(as_png(figure)).decode()}">'
            yield f'<h2>{title}</h2>\n<p>{text}</p>\n<div class="scroll">{image}</div>'
        if draw is plots.jacobian_by_part:
            yield _table([_extremes(name, row) for name, report in reports.items() for row in report["jacobian"]])
    yield "<h2>How it was measured</h2>"
    for name, report in reports.items():
        count, _, height, width = report["images"]
        images = f"{count} images of {height} x {width} pixels from {report['data']}"
        yield "<p>" + html.escape(f"{name}: {report['source']}; {images}; {report['versions']}") + "</p>"


def _summary(name: str, report: dict[str, Any]) -> dict[str, str]:
    convs, first, last = report["convs"], report["signal"][0], report["signal"][-1]
    near = sum(conv["near_1"] * conv["singular_values"] for conv in convs)
    return {
        "": name,
        "parameters": f"{report['parameters']:,}",
        "convs": str(len(convs)),
        "singular values within 0.1 of 1": f"{100 * near / sum(conv['singular_values'] for conv in convs):.1f} %",
        "smallest": _number(min(conv["smallest"] for conv in convs)),
        "largest": _number(max(conv["largest"] for conv in convs)),
        "penalty": _number(sum(conv["penalty"] or 0 for conv in convs)),
        "signal, last / first": _number(last["forward"] / first["forward"]),
        "gradient, first / last": _number(first["backward"] / last["backward"]) if last["backward"] else "no gradient",
    }


def _extremes(name: str, row: dict[str, Any]) -> dict[str, str]:
    return {
        "part": f"{name}, {row['part']}",
        **{key: f"{_number(row[key])} ± {_number(row[f'{key}_error'])}" for key in ("smallest", "largest")},
        "steps": str(row["steps"]),
    }


def _table(rows: list[dict[str, str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row.values()) for row in rows]
    return '<div class="scroll"><table>\n' + "".join(f"<tr>{line}</tr>\n" for line in (head, *lines)) + "</table></div>"


def _number(value: float) -> str:
    return "< 1e-9" if 0 < value < 1e-9 else f"{value:.3g}"
