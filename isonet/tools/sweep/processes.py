"""Runs the training runs of a sweep, each in a process of its own, one per slot at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from isonet.errors import EXIT_DONE, EXIT_STOPPED, printable
from isonet.signals import StopSignals
from isonet.tools.sweep.child import EXIT_DIVERGED
from isonet.tools.sweep.results import CFG_FILE, Result

_POLL_SECONDS = 0.1
_STATES = {EXIT_DONE: "finished", EXIT_DIVERGED: "diverged", EXIT_STOPPED: "stopped"}


def run_all(
    results: Sequence[Result], slots: Sequence[str | None], folder: Path, stop: StopSignals
) -> Iterator[Result]:
    """Run all of ``results`` in the folder of their sweep, and yield each, with its new state, when its run has ended.

    slots: the ``--gpus`` of the runs that are trained at the same time, one run on each.
    After a signal no run starts, and those that are running save and stop, as they do if this iterator is closed.
    """
    waiting, free = list(results), list(slots)
    busy: dict[str | None, tuple[Result, subprocess.Popen[bytes]]] = {}
    try:
        while busy or (waiting and not stop.received):
            while waiting and free and not stop.received:
                slot = free.pop(0)
                busy[slot] = _start(waiting.pop(0), slot, folder)
            if stop.received:
                _stop(busy.values())
            time.sleep(_POLL_SECONDS)
            for slot, (result, process) in list(busy.items()):
                if process.poll() is not None:
                    free.append(slot)
                    del busy[slot]
                    result.update(*_outcome(process.returncode, _output(result, folder), bool(stop.received)))
                    yield result
    finally:
        _stop(busy.values())


def _output(result: Result, folder: Path) -> Path:
    """The file for what the process of a run prints."""
    return folder / f"{result.run.name}.txt"


def _start(result: Result, gpus: str | None, folder: Path) -> tuple[Result, subprocess.Popen[bytes]]:
    run = result.run
    command = [sys.executable, "-m", "isonet.tools.sweep.child", "--cfg", str(folder / CFG_FILE), "--output", run.name]
    command += [*([] if gpus is None else ["--gpus", gpus]), *run.opts]
    result.state = "running"
    with _output(result, folder).open("ab") as file:
        return result, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT)


def _stop(running: Iterable[tuple[Result, subprocess.Popen[bytes]]]) -> None:
    """Close the standard input of the processes, at which they save and exit, see ``child``."""
    for _, process in running:
        if process.stdin:
            process.stdin.close()


def _outcome(code: int, output: Path, stopping: bool) -> tuple[str, str]:
    """The state of a run whose process exited with ``code``, and in one line why it is not finished."""
    state = _STATES.get(code, "failed")
    if state == "finished":
        return state, ""
    if state == "failed" and stopping:  # it was stopped before it could handle signals
        state = "stopped"
    if code < 0:
        return state, f"killed by {signal.Signals(-code).name}; what it printed is in {output}"
    lines = [line.strip() for line in output.read_text("utf-8", "replace")[-20_000:].splitlines() if line.strip()]
    for line in reversed(lines[-5:]):
        if line.startswith(("error: ", "stopped: ")):
            return state, printable(line.partition(": ")[2])
    return state, f"exit code {code}: {printable(lines[-1]) if lines else 'nothing was printed'}"
