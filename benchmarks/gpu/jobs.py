"""Jobs in sections, each with a share of the time. The results are written to a file after every row."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

import torch

from benchmarks.common import Row, table
from isonet.errors import UserError
from isonet.files.storage import write_file

FAILED = ("error:", "fail:")  # the first word of a note
NOT_RUN = "not run:"


@dataclass(frozen=True)
class Job:
    """A part of a section that yields rows. An error ends this part only.

    run: called with the time of ``time.monotonic`` at which it must end. seconds: how long the job takes at most on a
    GPU; it does not start with less.
    """

    work: str
    run: Callable[[float], Iterable[Row]]
    seconds: float = 0.0


@dataclass(frozen=True)
class Section:
    """Jobs that share a part of the time. What a section leaves over is for the sections after it."""

    name: str
    share: float
    jobs: Sequence[Job]


@dataclass
class Results:
    """The rows so far, and the outcome of each section, in a file that is complete after every row."""

    file: Path
    machine: dict[str, object]
    rows: list[Row] = field(default_factory=list)
    sections: dict[str, dict[str, object]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(table([row]).splitlines()[-1], flush=True)
        self.write()

    def write(self) -> None:
        rows = [asdict(row) for row in self.rows]
        content = {"title": "one GPU", "machine": self.machine, "sections": self.sections, "rows": rows}
        write_file(self.file, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def end(self, name: str, rows: Sequence[Row], seconds: float) -> None:
        notes = [row.note for row in rows]
        failed = any(note.startswith(FAILED) for note in notes)
        ran = any(not note.startswith(NOT_RUN) for note in notes)
        outcome = "failed" if failed else "done" if ran else "not run"
        self.sections[name] = {"outcome": outcome, "seconds": round(seconds, 1)}
        self.write()

    @property
    def failed(self) -> bool:
        return any(row.note.startswith(FAILED) for row in self.rows)


def remark(work: str, note: str) -> Row:
    """Return a row without numbers."""
    return Row(work, None, None, None, None, "", note)


def difference(work: str, value: float, tolerance: float | None, note: str = "", unit: str = "relative") -> Row:
    """Return a row with the difference of two results, which fails if it is larger than ``tolerance`` or NaN."""
    if tolerance is not None and not value <= tolerance:
        note = f"fail: above the tolerance; {note}".rstrip("; ")
    if not math.isfinite(value):
        note = f"{note}; the difference is {value}".lstrip("; ")
    return Row(work, None, value if math.isfinite(value) else None, None, tolerance, unit, note)


def run_sections(sections: Sequence[Section], minutes: float, results: Results) -> None:
    """Run every job for which time is left, and add its rows to ``results``."""
    planned = time.monotonic()
    end = planned + 60 * minutes
    for number, section in enumerate(sections, start=1):
        print(f"\n{section.name}\n{table([])}", flush=True)
        planned += 60 * minutes * section.share
        needed = sum(job.seconds for later in sections[number:-1] for job in later.jobs)
        began, first = time.monotonic(), len(results.rows)
        for job in section.jobs:
            run_job(job, min(planned, end), end, needed, results)
        results.end(section.name, results.rows[first:], time.monotonic() - began)


def run_job(job: Job, planned: float, end: float, needed: float, results: Results) -> None:
    """Run a job until ``planned`` or, if it needs longer, for its own seconds. An error becomes a row with its kind.

    After ``planned``, a job starts only if it leaves the seconds that are ``needed`` after it until ``end``.
    """
    now = time.monotonic()
    if end - now <= job.seconds or (now >= planned and end - now - needed < job.seconds):
        results.add(remark(job.work, f"{NOT_RUN} no time left"))
        return
    until = min(end, max(planned, now + job.seconds))
    try:
        with alarm(until - now):
            for row in job.run(until):
                results.add(row)
    except OutOfTime:
        results.add(remark(job.work, f"{NOT_RUN} not finished within {until - now:.0f} s"))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        text = f"error: {type(error).__name__}: {lines[0][:300]}"
        results.add(remark(job.work, text.replace("|", "/")))  # a bar would end the cell of a table
        if not isinstance(error, UserError):
            traceback.print_exc()
    release_memory()


class OutOfTime(BaseException):
    """Raised in a job whose time is over. It is no ``Exception``, so that no library handles it."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in the ``with`` block after ``seconds``, as soon as Python code runs again."""
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTime

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 10)  # again, if a finalizer swallows the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def release_memory() -> None:
    """Release the graphs and the memory of a job, so that the next job has the whole GPU."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def gpu_facts(device: torch.device) -> dict[str, object]:
    """Return what torch and the driver say about the GPU."""
    if device.type != "cuda":
        return {}
    driver = Path("/proc/driver/nvidia/version")
    gpu = torch.cuda.get_device_properties(device)
    return {
        "memory": f"{gpu.total_memory / 2**30:.0f} GiB",
        "capability": f"{gpu.major}.{gpu.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver.read_text(encoding="utf-8").split("\n")[0] if driver.is_file() else "unknown",
        "cores": os.cpu_count(),
    }
