"""Stopping politely: a signal is noted, and the run stops where nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

# What a terminal (SIGINT; SIGHUP when it closes), `kill` (SIGTERM) and a scheduler before it takes the machine send
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopRequested(Exception):  # noqa: N818 - not an error
    """The run is to stop here; the text is the name of the signal."""


class StopSignals:
    """Notes the first of the signals that comes while the ``with`` block runs. A later Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # no other thread may
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as nohup asks
            self._former = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise ``StopRequested`` if a signal has come."""
        if self.received:
            raise StopRequested(self.received)

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Pass ``items`` on, and check before each."""
        for item in items:
            self.check()
            yield item

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.received:
            self.received = signal.Signals(number).name
            # Not print, which may be what was interrupted
            os.write(2, f"\n{self.received}: finishing the step and saving; Ctrl-C stops at once\n".encode())
