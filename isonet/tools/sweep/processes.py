"""The processes of a sweep. ``run_all`` starts one process for each run, and each executes this module as a script."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from isonet.config import load_cfg
from isonet.errors import EXIT_DONE, EXIT_STOPPED, CheckpointError, printable, run_cli
from isonet.files.run_folder import AUTO, run_folder
from isonet.files.storage import FolderLock, replace_link
from isonet.signals import StopSignals
from isonet.tools.cli import make_parser
from isonet.tools.sweep.runs import Run
from isonet.training.log import log_to_terminal

CFG_FILE = "sweep.yaml"  # the config of the first run

_POLL_SECONDS = 0.1
_LOCK_SECONDS = 60  # how long a run of a killed sweep may take to save and exit


def run_all(runs: Sequence[Run], slots: Sequence[str | None], folder: Path, stop: StopSignals) -> Iterator[Run]:
    """Train each of ``runs`` in a separate process, and yield it, with its new state, when its process has ended.

    slots: the ``--gpus`` of the runs that are trained at the same time, one run on each. folder: the sweep's folder.
    After a signal, no run starts, and the current runs save and stop. They also do so if this iterator is closed.
    """
    waiting, free = list(runs), list(slots)
    busy: dict[str | None, tuple[Run, subprocess.Popen[bytes]]] = {}
    for run in runs:
        replace_link(_output(run, folder))
    read_end, write_end = os.pipe()
    # The standard input of all processes: they stop at its end, that is, when this process closes it or dies
    with open(read_end, "rb") as lifeline, open(write_end, "wb") as ours:
        while busy or (waiting and not stop.received):
            while waiting and free and not stop.received:
                slot, run = free.pop(0), waiting.pop(0)
                run.state = "running"
                busy[slot] = run, _start(run, slot, folder, lifeline.fileno())
            if stop.received:
                ours.close()
            time.sleep(_POLL_SECONDS)
            for slot, (run, process) in list(busy.items()):
                if process.poll() is not None:
                    free.append(slot)
                    del busy[slot]
                    run.update(*_outcome(process.returncode, _output(run, folder), bool(stop.received)))
                    yield run


def _start(run: Run, gpus: str | None, folder: Path, lifeline: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "isonet.tools.sweep.processes", "--cfg", str(folder / CFG_FILE)]
    command += ["--output", run.name, *([] if gpus is None else ["--gpus", gpus]), *run.opts]
    with _output(run, folder).open("ab") as file:
        return subprocess.Popen(command, stdin=lifeline, stdout=file, stderr=subprocess.STDOUT)


def _output(run: Run, folder: Path) -> Path:
    """Return the file for the output of a run's process."""
    return folder / f"{run.name}.txt"


def _outcome(code: int, output: Path, stopping: bool) -> tuple[str, str]:
    """Return the state of a run whose process exited with ``code``, and one line on why it is not finished."""
    if code == EXIT_DONE:
        return "finished", ""
    state = "stopped" if code == EXIT_STOPPED or stopping else "failed"
    if code < 0:
        return state, f"killed by {signal.Signals(-code).name}; its output is in {output}"
    lines = [line for line in output.read_text("utf-8", "replace").splitlines() if line.strip()] or ["nothing printed"]
    for line in reversed(lines[-5:]):
        if line.startswith(("error: ", "stopped: ")):
            return state, printable(line.partition(": ")[2])
    return state, f"exit code {code}: {printable(lines[-1])}"


def main(args: argparse.Namespace) -> None:
    """Start one run, or resume it."""
    from isonet.training.run import run_training

    threading.Thread(target=_stop_with_the_sweep, daemon=True).start()
    log_to_terminal()
    cfg = load_cfg(args.cfg, args.opts)
    for _ in range(_LOCK_SECONDS):  # if the folder stays locked, run_training says by whom
        with contextlib.suppress(CheckpointError), FolderLock(run_folder(cfg, args.output).path):
            break
        time.sleep(1)
    run_training(cfg, args.output, args.gpus, AUTO)


def _stop_with_the_sweep() -> None:
    """Send this process SIGTERM at the end of its standard input."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    parser = make_parser(__doc__, "  python -m isonet.tools.sweep --help", tool="sweep.processes")
    parser.add_argument("--output", required=True, metavar="NAME", help="the name of the run")
    sys.exit(run_cli(main, lambda: parser.parse(sys.argv[1:])))
