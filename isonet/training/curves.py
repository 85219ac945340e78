"""The picture of a run, drawn while it goes on: loss, penalty, accuracy and learning rate against the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isonet.plots import COLOURS, PANELS, Row, as_png, new_figure, scale_epochs, scale_y, style, values_of

_SHOWN = ("cross_entropy", "penalty", "top1", "learning_rate")
_WIDTH, _HEIGHT, _TEXT = 1350, 900, 9.5  # pixels, pixels, points
_FEW = 40  # epochs of which each is marked
_TRAINING = {"color": COLOURS[0], "linestyle": "--", "label": "training"}
_ONLY = {"color": COLOURS[2]}
_VALIDATION = {"color": COLOURS[1], "linestyle": "-", "label": "validation"}


class CurvesFigure:
    """Draws the curves of one run, each time in the same figure, which takes a third of the time of a new one."""

    def __init__(self, name: str) -> None:
        """name: of the run, above the panels."""
        with style(_TEXT):
            # A layout that measures the text would take as long again
            self.figure = new_figure(_WIDTH, _HEIGHT, fitted=False)
            self.figure.subplots_adjust(left=0.09, right=0.985, top=0.925, bottom=0.08, wspace=0.26, hspace=0.27)
            self.axes = list(self.figure.subplots(2, 2).flat)
            self.figure.suptitle(name if len(name) <= 90 else f"{name[:87]}...", y=0.985)

    def draw(self, rows: Sequence[Row]) -> bytes:
        """The PNG of these rows of metrics, of which there is one at least."""
        with style(_TEXT):
            for axis, key in zip(self.axes, _SHOWN, strict=True):
                self._draw_panel(axis, key, rows)
            return as_png(self.figure)

    def _draw_panel(self, axis: Any, key: str, rows: Sequence[Row]) -> None:
        panel = PANELS[key]
        axis.clear()
        epochs = values_of(rows, "epoch")
        marker = {"marker": "o"} if len(rows) <= _FEW else {}
        lines = [_TRAINING, _VALIDATION] if panel.validation else [_ONLY]
        for name, line in zip(panel.keys, lines, strict=True):
            axis.plot(epochs, values_of(rows, name), **line, **marker, drawstyle=panel.drawstyle)
        scale_epochs(axis, int(epochs[-1]))
        scale_y(axis, panel, rows)
        if panel.validation:
            axis.legend(framealpha=0.8, edgecolor="none")
