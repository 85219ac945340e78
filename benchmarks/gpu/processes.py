"""Scripts in processes of their own, forked from a server that has imported the project but has not touched a GPU.

A new interpreter takes seconds to import torch, and a process that has used a GPU cannot be forked.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

REPO = Path(__file__).parents[2]
PRELOADED = ["benchmarks.gpu.processes", "isonet.training.run", "isonet.data.augment", "isonet.data.workers"]

_SERVER = multiprocessing.get_context("forkserver")


@dataclass
class Script:
    """A script such as train.py, or a module, in a process group of its own. ``log`` has its output."""

    process: ForkServerProcess
    log: Path

    def wait(self, until: float) -> int | None:
        """Return the exit code, or None for a process that is still running at ``until`` (``time.monotonic``)."""
        self.process.join(max(0.0, until - time.monotonic()))
        return self.process.exitcode

    def check(self, until: float) -> None:
        """Wait for the end. Raises ``RuntimeError`` for another exit code than 0, with the last line of the output."""
        try:
            code = self.wait(until)
        finally:
            self.stop()
        if code != 0:
            lines = self.text().split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "")
            raise RuntimeError(f"{self.log.stem} {'was cut off' if code is None else f'ended with {code}'}: {last}")

    def text(self) -> str:
        """Return the output so far, without the parts of a line that a carriage return has overwritten."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n"))

    def stop(self, seconds: float = 0.0) -> None:
        """Ask a process that still runs to stop, wait for ``seconds``, and kill its process group."""
        for number, wait in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
            if self.process.exitcode is None:
                try:
                    os.killpg(self.process.pid or 0, number)
                except ProcessLookupError:  # the process group does not exist yet
                    self.process.kill()
                self.process.join(wait)


def preload() -> None:
    """Let the server import the project when it starts. Call this once, in a program and not in a module."""
    _SERVER.set_forkserver_preload(PRELOADED)


def start(name: str, args: list[object], log: Path, **env: str) -> Script:
    """Start a script of the project, or a module such as ``pytest``, in the folder of ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(REPO), **env}
    hidden = [module for module in sys.modules if sys.modules[module] is None]
    run = functools.partial(_run, name, [str(arg) for arg in args], str(log), environment, hidden)
    process = _SERVER.Process(target=run)
    process.start()
    return Script(process, log)


def _run(name: str, args: list[str], log: str, environment: dict[str, str], hidden: list[str]) -> None:
    """Give this process the state of a new interpreter, and run the script."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # the platform's default
    os.environ.clear()
    os.environ.update(environment)
    sys.modules.update(dict.fromkeys([*hidden, "matplotlib"]))  # type: ignore[arg-type]  # nobody looks at pictures
    sys.path.insert(0, str(REPO))
    os.chdir(REPO if name == "pytest" else Path(log).parent)
    script = REPO / name
    sys.argv = [str(script) if name.endswith(".py") else name, *args]
    if name.endswith(".py"):
        runpy.run_path(str(script), run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
