"""Time and peak memory of a function in a process of its own, as Linux reports them."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def in_new_process(function: Callable[..., Any], *args: Any, method: str = "forkserver") -> Any:
    """Return the result of ``function``, which a new process calls.

    method: "spawn" starts an interpreter, which takes seconds. "forkserver" forks a process that has imported torch and
    computed nothing.
    """
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["isonet.training", "benchmarks.step"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, args))
    process.start()
    sender.close()  # so that recv() raises if the process fails
    result = receiver.recv()
    process.join()
    return result


def _send(sender: Connection, function: Callable[..., Any], args: tuple) -> None:
    sender.send(function(*args))


def measure(function: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a call, and by how many MiB it raises the memory of this process at its peak."""
    with contextlib.suppress(OSError):  # without the right to do so, the peak includes what came before
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present size
    before = resident()
    start = time.perf_counter()
    result = function()  # noqa: F841 - it stays in memory until the end of the measurement
    seconds = time.perf_counter() - start
    return seconds, peak() - before


def peak() -> float:
    """Return the peak resident memory of this process in MiB, with the pages of libraries that it shares."""
    return _kilobytes("/proc/self/status", "VmHWM") / 1024


def resident() -> float:
    return _kilobytes("/proc/self/status", "VmRSS") / 1024


def private(process: int) -> float:
    """Return the memory of a process in MiB that it shares with no other process."""
    return sum(_kilobytes(f"/proc/{process}/smaps_rollup", key) for key in ("Private_Dirty", "Private_Clean")) / 1024


def _kilobytes(file: str, key: str) -> int:
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
