"""What a run shows of its metrics besides text: ``curves.png``, and events for TensorBoard."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from isonet.errors import printable
from isonet.files.run_folder import RunFolder
from isonet.files.storage import write_file
from isonet.plots import MISSING, Row, have_matplotlib
from isonet.plots.curves import CurvesFigure
from isonet.training.events import Events

log = logging.getLogger("isonet")

SECONDS_BETWEEN = 10.0  # two pictures, each of which takes a quarter of one


class Report:
    """Draws the curves after the first epoch, then every ten seconds at most, and at the end of the ``with`` block.

    Whatever goes wrong with a picture or with the events is said once, and costs these and not the run.
    """

    def __init__(self, folder: RunFolder, tensorboard: bool, rows: Sequence[Row], leads: bool = True) -> None:
        """rows: of all epochs, which a run adds to. leads: else nothing is shown, since another process does."""
        self.folder, self.rows, self.leads = folder, rows, leads
        self.tensorboard = tensorboard
        self.draws = False
        self.drawn: int | None = None  # rows in the picture
        self.last = 0.0  # when it was drawn
        self.figure: CurvesFigure | None = None
        self.events: Events | None = None

    def __enter__(self) -> Report:
        if not self.leads:
            return self
        self.draws = have_matplotlib()
        if not self.draws:
            log.info("%s is not drawn: %s", self.folder.curves.name, MISSING)
        if self.tensorboard:
            with self._forgiven():
                self.events = Events(self.folder)
            self._write_events()
        return self

    def update(self) -> None:
        """Show the rows, of which one is new."""
        self._write_events()
        if self.drawn is None or time.monotonic() - self.last >= SECONDS_BETWEEN:
            self._draw()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):  # an interrupt ends the run at once
            self._draw()
        if self.events:
            with self._forgiven():
                self.events.close()

    def _draw(self) -> None:
        if not self.draws or not self.rows or self.drawn == len(self.rows):
            return
        self.draws, self.drawn = False, len(self.rows)
        with self._forgiven():
            self.figure = self.figure or CurvesFigure(self.folder.path.name)
            write_file(self.folder.curves, self.figure.draw(self.rows))
            self.draws = True
        self.last = time.monotonic()

    def _write_events(self) -> None:
        events, self.events = self.events, None
        if events:
            with self._forgiven():
                events.update(self.rows)
                self.events = events

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of two libraries, of fonts and disks: none of it may end a run
            why = f"{'' if isinstance(error, OSError) else type(error).__name__ + ': '}{printable(error)}"
            log.warning("curves or events of this run are not written any more: %.300s", why)
