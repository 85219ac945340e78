"""Stopping politely: a signal is noted, and the run stops where nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# What a terminal (SIGINT; SIGHUP when it closes), `kill` (SIGTERM) and a scheduler before it takes the machine send
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

_INSIST_SECONDS = 0.5


class StopRequested(Exception):  # noqa: N818 - not an error
    """The run is to stop here; the text is the name of the signal."""


class StopSignals:
    """Notes the first of the signals that comes while the ``with`` block runs.

    A later Ctrl-C raises ``KeyboardInterrupt``, and again until ``calm`` is called: where Python runs code for
    others, such as a destructor, an exception is printed and lost.
    quiet: note it without a word, as all processes of a run but one do.
    launched: that the process which started this one is gone counts as SIGHUP.
    """

    def __init__(self, quiet: bool = False, launched: bool = False) -> None:
        self.quiet = quiet
        self._parent = os.getppid() if launched else None
        self._received: str | None = None
        self._former: dict[int, Any] = {}
        self._insists = False

    @property
    def received(self) -> str | None:
        """The name of the signal, if one has come."""
        if self._parent and not self._received and os.getppid() != self._parent:
            self._note(signal.SIGHUP, None)
        return self._received

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # no other thread may
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as nohup asks
            self._former = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.calm()
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def calm(self) -> None:
        """The interrupt has arrived: let what follows end in peace."""
        if self._insists:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            self._insists = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            self._insists = True
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, _INSIST_SECONDS, _INSIST_SECONDS)
            raise KeyboardInterrupt
        if not self._received:
            self._received = signal.Signals(number).name
            if self.quiet:
                return
            with contextlib.suppress(OSError):  # not print, which may be what was interrupted
                os.write(2, f"\n{self._received}: stopping after this step; Ctrl-C stops at once\n".encode())
