"""The isometry report as one HTML page without external files."""

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from isonet.plots import as_png, style
from isonet.plots import isometry as plots
from isonet.plots.isometry import Reports

_STYLE = """
body { margin: 0 auto; max-width: 54rem; padding: 1rem 1rem 4rem; font: 1rem/1.55 system-ui, sans-serif; }
h1, caption { overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .5rem; }
img { width: 100%; min-width: 40rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .4rem; text-align: right; border-bottom: 1px solid #dddddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.cards { display: flex; flex-wrap: wrap; gap: 1.5rem 2rem; align-items: end; }
caption { text-align: left; font-weight: bold; padding-bottom: .3rem; }
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
        """The thin line spans the singular values of the convolution on its feature map, with circular padding. The
        thick part spans the middle half, and the dot is the median. The grey line is 1. Values below 0.001 are drawn at
        0.001. A convolution with fewer outputs than inputs maps some directions to 0, which do not count. If only k of
        n values can be 1, the line, its thick part and the dot show the k largest, and a dotted line the others.""",
    ),
    (
        "The signal forward, the gradient backward",
        plots.norms_by_layer,
        """The length of the signal after each activation, relative to the first activation, and the length of the
        gradient of the loss, relative to the last activation, as means over the images. Changes of width and resolution
        are included. In a network with shortcuts, the line passes through the activations after each sum, and hollow
        markers show the activations inside the residual branches. A line that falls or rises by many powers of ten
        indicates a network that does not train. Values of 0 are not drawn.""",
    ),
    (
        "Whole stages",
        plots.jacobian_by_part,
        """The largest and the smallest singular value of the Jacobian of each stage at one image, with activations. The
        computation approaches them from within, so the true range may be wider. A filled marker is a value that is
        determined to a tenth or better. A hollow marker is a bound. The value is somewhere on the dotted line, and may
        be 0. A larger --steps determines more values. Pooling maps many directions to 0.""",
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
        """The orthogonality penalty 1/2 sum ||G[d] - [d = 0] I||^2 of each convolution in the sum, without the
        coefficient. It is 0 if the convolution is orthogonal. A hollow marker is a penalty below a millionth of the
        largest penalty. It may be 0.""",
    ),
)


_COUNTED = """The smallest value and the share within 0.1 of 1 refer to the k largest of the n singular values of
each convolution. k is smaller than n in two cases. If a convolution has a stride and more outputs than inputs, the
published penalty is 0 only if the squares of its singular values sum up to the number of input channels at each output
position, so only k of them can be 1. A kernel smaller than its stride does not reach every pixel. The other singular
values are often 0. This does not indicate poor training."""


def page(reports: Reports) -> str:
    """The page, with two tables and five figures. reports: the result of ``measure`` for each network, by name."""
    names = html.escape(", ".join(reports))
    what = names if len(reports) == 1 else f"each of {names}"
    with style(9.0):
        body = "\n".join(_body(reports))
    return _PAGE.format(title=f"Isometry report: {names}", style=_STYLE, what=what, body=body)


def _body(reports: Reports) -> Iterator[str]:
    yield _tables({name: _summary(report) for name, report in reports.items()})
    yield f"<p>{_COUNTED}</p>"
    for title, draw, text in _SECTIONS:
        if figure := draw(reports):
            image = f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(as_png(figure)).decode()}">'
            yield f'<h2>{title}</h2>\n<p>{text}</p>\n<div class="scroll">{image}</div>'
        if draw is plots.jacobian_by_part:
            rows = {name: [_extremes(row) for row in report["jacobian"]] for name, report in reports.items()}
            yield _tables(rows, ("part", "smallest", "largest", "steps"))
    yield "<h2>How it was measured</h2>"
    for name, report in reports.items():
        count, _, height, width = report["images"]
        images = f"{count} images of {height} x {width} pixels from {report['data']}"
        yield "<p>" + html.escape(f"{name}: {report['source']}; {images}; {report['versions']}") + "</p>"


def _summary(report: dict[str, Any]) -> list[tuple[str, str]]:
    convs, first, last = report["convs"], report["signal"][0], report["signal"][-1]
    kept = [conv["kept"] for conv in convs]
    count = sum(each["singular_values"] for each in kept)
    near = sum(each["near_1"] * each["singular_values"] for each in kept)
    figures = {
        "parameters": f"{report['parameters']:,}",
        "convs": str(len(convs)),
        "singular values, n": f"{sum(conv['singular_values'] for conv in convs):,}",
        "that can be 1, k": f"{count:,}",
        "within 0.1 of 1": f"{100 * near / count:.1f} %",
        "smallest": _number(min(each["smallest"] for each in kept)),
        "largest": _number(max(conv["largest"] for conv in convs)),
        "penalty": _number(sum(conv["penalty"] or 0 for conv in convs)),
        "signal, last / first": _ratio(last["forward"], first["forward"], "no signal"),
        "gradient, first / last": _ratio(first["backward"], last["backward"], "no gradient"),
    }
    return [*figures.items()]


def _ratio(value: float, base: float, without: str) -> str:
    return _number(value / base) if base else without


def _extremes(row: dict[str, Any]) -> tuple[str, ...]:
    smallest, largest = (
        f"{_number(row[key])} ± {max(row[f'{key}_error'], row['rounding']):.1g}" for key in ("smallest", "largest")
    )
    if row["smallest_is_bound"]:
        smallest = f"< {1.05 * plots.lower_end(row):.2g}"  # rounding to two digits changes a value by less than 5 %
    if row["largest_is_bound"]:
        largest = f"> {row['largest'] / 1.05:.2g}"
    return row["part"], smallest, largest, str(row["steps"])


def _tables(networks: Mapping[str, Sequence[Sequence[str]]], head: Sequence[str] = ()) -> str:
    """Return one table per network. The tables are narrow enough for a phone, and side by side on a wide page."""
    return '<div class="cards">\n' + "".join(_table(name, rows, head) for name, rows in networks.items()) + "</div>"


def _table(caption: str, rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    body = f"<tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>\n" if head else ""
    body += "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption>\n{body}</table>\n"


def _number(value: float) -> str:
    return "< 1e-9" if 0 < value < 1e-9 else f"{value:.3g}"
