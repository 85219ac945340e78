"""The signals that stop a run, and a context manager that records them instead of ending the process.

This module does not import torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

# A terminal sends SIGINT, and SIGHUP when it closes. `kill` sends SIGTERM. Before schedulers end a job, they send
# SIGTERM, SIGUSR1 (Slurm if configured, Grid Engine), SIGUSR2 (LSF, Grid Engine) or SIGXCPU (a limit of CPU time).
# Windows has only the first two signals of the list
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGHUP")
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))

_AGAIN_SECONDS = 0.01


class StopRequested(Exception):  # noqa: N818 - not an error
    """Raised on every rank after one of them has received a signal. The text is the name of the signal."""


class StopSignals:
    """Records the first stop signal that arrives while the ``with`` block runs, so that the run can save and stop.

    A second Ctrl-C raises ``KeyboardInterrupt``. If Python drops that exception, as it does with errors that a
    destructor raises, it is raised again.

    quiet: whether to print nothing when a signal arrives.
    launched: whether to treat the death of the parent process as SIGHUP.
    """

    def __init__(self, quiet: bool = False, launched: bool = False) -> None:
        self.quiet = quiet
        self._parent = os.getppid() if launched else None
        self._received: signal.Signals | None = None
        self._former: dict[int, Any] = {}
        self._former_hook = sys.unraisablehook

    @property
    def received(self) -> signal.Signals | None:
        """The first signal that arrived, or None."""
        if self._parent and not self._received and os.getppid() != self._parent:
            self._note(signal.SIGHUP, None)
        return self._received

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other thread
            handled = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # see nohup
            self._former = {number: signal.signal(number, self._note) for number in handled}
            if hasattr(signal, "setitimer"):  # not on Windows
                self._former[signal.SIGALRM] = signal.signal(signal.SIGALRM, signal.default_int_handler)
                self._former_hook, sys.unraisablehook = sys.unraisablehook, self._raise_again
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._former and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = self._former_hook
        for number, handler in self._former.items():
            signal.signal(number, handler)
        # The kernel repeats SIGXCPU every second, also at exit, when Python has restored the default action
        if self._received and self._received.name == "SIGXCPU":
            signal.signal(self._received, signal.SIG_IGN)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._received:
            return
        self._received = signal.Signals(number)
        if not self.quiet:
            with contextlib.suppress(OSError):  # os.write: the signal may have interrupted a print
                os.write(
                    2, f"\n{self._received.name}: stopping after this step; press Ctrl-C to stop immediately\n".encode()
                )

    def _raise_again(self, dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)  # not here: Python drops what this hook raises
        else:
            self._former_hook(dropped)
