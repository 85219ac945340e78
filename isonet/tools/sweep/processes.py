"""The runs of a sweep as processes: each on its GPUs, stopped politely, killed only by an insistent user."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from isonet.errors import EXIT_DONE, EXIT_STOPPED, printable
from isonet.signals import StopSignals
from isonet.tools.sweep.child import EXIT_DIVERGED
from isonet.tools.sweep.grid import Run

_LOOK_SECONDS = 0.1  # between two looks at the processes
_PARTING_SECONDS = 5.0  # for a process to end that was told to end at once

STATES = {EXIT_DONE: "finished", EXIT_DIVERGED: "diverged", EXIT_STOPPED: "stopped"}


@dataclass
class Child:
    """A run that is going on. output: the file that holds what it prints."""

    run: Run
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def outcome(self) -> tuple[str, str]:
        """How the process ended: a state, and the reason in one line where it is not finished."""
        code = self.process.returncode
        if code < 0:
            return "failed", f"killed by {signal.Signals(-code).name}; what it printed is in {self.output}"
        return STATES.get(code, "failed"), "" if code == EXIT_DONE else _last_words(self.output, code)


def start(run: Run, cfg_path: Path, gpus: str | None, output: Path) -> Child:
    """Start the run, or let it go on. gpus: as of train.py."""
    command = [sys.executable, "-m", "isonet.tools.sweep.child", "--cfg", str(cfg_path), "--output", run.name]
    command += [*([] if gpus is None else ["--gpus", gpus]), *run.opts]
    with output.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the sweep, which passes it on
        )  # fmt: skip
    return Child(run, process, output)


def run_all(
    runs: Sequence[Run],
    slots: Sequence[str | None],
    launch: Callable[[Run, str | None], Child],
    on_end: Callable[[Child], None],
) -> str | None:
    """Run all, one on each of ``slots`` at a time; returns the name of the signal that ended it before that.

    After a signal the processes save and end. A second Ctrl-C ends them at once, and raises ``KeyboardInterrupt``.
    """
    waiting, free = list(runs), list(slots)
    busy: dict[str | None, Child] = {}
    with StopSignals() as stop:
        try:
            told = False
            while busy or (waiting and not stop.received):
                while waiting and free and not stop.received:
                    slot = free.pop(0)
                    busy[slot] = launch(waiting.pop(0), slot)
                if stop.received and not told:
                    told = True
                    for child in busy.values():
                        child.process.terminate()
                time.sleep(_LOOK_SECONDS)
                for slot in [slot for slot, child in busy.items() if child.process.poll() is not None]:
                    free.append(slot)
                    on_end(busy.pop(slot))
        finally:
            _end_at_once([child.process for child in busy.values()])
        return stop.received.name if stop.received else None


def _end_at_once(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """None of its files can be spoilt: what is whole on disk stays whole."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    end = time.monotonic() + _PARTING_SECONDS
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        process.kill()
        process.wait()


def _last_words(output: Path, code: int) -> str:
    """The error that a process printed, or the last line, which of a traceback names the exception."""
    lines = [line.strip() for line in output.read_text("utf-8", "replace")[-20_000:].splitlines() if line.strip()]
    told = [line for line in lines[-5:] if line.startswith(("error: ", "stopped: "))]
    last = told[-1].partition(": ")[2] if told else f"exit code {code}: {lines[-1] if lines else 'without a word'}"
    return printable(last)
