"""The output of a run beside text: ``curves.png``, TensorBoard events and singular values."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from isonet.config import image_size
from isonet.errors import UserError, printable
from isonet.extras import install
from isonet.files.run_folder import EVENTS, RunFolder
from isonet.files.storage import write_file
from isonet.isometry import feature_sizes, network_extremes
from isonet.plots import MISSING, Row, have_matplotlib
from isonet.plots.runs import draw_runs

log = logging.getLogger("isonet")

_SECONDS_BETWEEN_PICTURES = 10.0  # drawing one takes a third of a second


def require_tensorboard() -> None:
    """Raise ``UserError`` if the package that writes events is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise UserError(f"RUNTIME.TENSORBOARD True needs the package tensorboard: {install('tensorboard')}") from None


class Report:
    """Draws the curves after the first epoch, then at most every ten seconds, and at the end of the ``with`` block.

    With RUNTIME.TENSORBOARD it also writes each row of metrics as scalars, with the epoch as the step. If a picture or
    the events cannot be written, the run continues without them, after one warning.

    rows: the metrics of all epochs. The run appends one row per epoch. images: the number of validation images.
    shown: whether this rank shows the report.
    """

    def __init__(self, folder: RunFolder, tensorboard: bool, rows: Sequence[Row], images: int, shown: bool) -> None:
        self.folder, self.rows, self.shown, self.tensorboard = folder, rows, shown, tensorboard
        self.images = images
        self.draws = False
        self.drawn: int | None = None  # rows in the picture
        self.last = 0.0  # when it was drawn
        self.events: Any = None  # torch's SummaryWriter
        self.written = 0  # rows in the events

    def __enter__(self) -> Report:
        if not self.shown:
            return self
        self.draws = have_matplotlib()
        if not self.draws:
            log.info("%s is not drawn: %s", self.folder.curves.name, MISSING)
        if self.tensorboard:
            with self._tolerated():
                self._open_events()
            self._write_events()
        return self

    def update(self) -> None:
        """Show the rows after the run has appended one."""
        self._write_events()
        if self.drawn is None or time.monotonic() - self.last >= _SECONDS_BETWEEN_PICTURES:
            self._draw()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):  # an interrupt ends the run immediately
            self._draw()
        if self.events:
            with self._tolerated():
                self.events.close()

    def _draw(self) -> None:
        if not self.draws or not self.rows or self.drawn == len(self.rows):
            return
        self.draws, self.drawn, name = False, len(self.rows), self.folder.path.name
        with self._tolerated():
            write_file(self.folder.curves, draw_runs({name: self.rows}, images={name: self.images}))
            self.draws = True
        self.last = time.monotonic()

    def _open_events(self) -> None:
        """Write all events again: a kill may have lost some, and others may be newer than a resumed checkpoint.

        ``purge_step`` makes an open TensorBoard discard the former events.
        """
        from torch.utils.tensorboard import SummaryWriter

        for file in self.folder.events():
            file.unlink(missing_ok=True)
        self.events = SummaryWriter(str(self.folder.path), purge_step=1, filename_suffix=EVENTS)

    def _write_events(self) -> None:
        events, self.events = self.events, None
        if events is None:
            return
        with self._tolerated():
            for row in self.rows[self.written :]:
                for key, value in row.items():
                    if key != "epoch":
                        events.add_scalar(key, value, int(row["epoch"]))
            events.flush()
            self.written, self.events = len(self.rows), events

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # matplotlib, TensorBoard, fonts or the disk: none of these may end a run
            why = f"{'' if isinstance(error, OSError) else type(error).__name__ + ': '}{printable(error)}"
            log.warning("the curves or events of this run are no longer written: %.300s", why)


def singular_values(model: nn.Module, cfg: CfgNode, epoch: int) -> dict[str, float]:
    """Return the extreme singular values of all convolutions, if RUNTIME.LOG_SPECTRUM selects this epoch."""
    every = cfg.RUNTIME.LOG_SPECTRUM
    if not every or epoch % every:
        return {}
    device, was_training = next(model.parameters()).device, model.training
    size = image_size(cfg)
    model.eval()
    sizes = feature_sizes(model, torch.zeros(1, 3, size, size, device=device))
    model.train(was_training)
    smallest, largest = network_extremes(model, sizes)
    return {"smallest_singular_value": smallest, "largest_singular_value": largest}
