"""Worker processes: they outlive the signals that stop a run, and if one dies it is said of what."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

from isonet.errors import WorkerError

# What a terminal or a scheduler sends to every process of a run, of which only the main one acts
_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
_WATCH_SECONDS = 2.0  # between two looks whether the main process is still there

_DEAD = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (\d+).*?\) "
    r"(?:is killed by signal: ([^.]+)|exited unexpectedly(?: with exit code (\d+))?)"
)
_SHARED_MEMORY = re.compile(r"unable to .*(shared memory|</torch_)")

_workers: weakref.WeakValueDictionary[int, BaseProcess] = weakref.WeakValueDictionary()


@contextlib.contextmanager
def held_stop_signals() -> Iterator[None]:
    """Deliver signals that stop a run after this, and to processes that start meanwhile not before they are ready."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_stop_signals(_: int) -> None:
    """Begin a worker: signals that stop a run are for the main process, which still wants its batches.

    SIGTERM is obeyed if the main process itself sends it, as it does to workers that are left at its end.
    """
    for number in _STOP_SIGNALS - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _show_unless_the_main_process_is_gone
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        main = multiprocessing.parent_process()
        if main is not None and main.pid is not None:
            threading.Thread(target=_wait_for_the_end, args=(main.pid, os.getppid()), daemon=True).start()


def _show_unless_the_main_process_is_gone(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """The thread that hands batches over would print that nobody takes them any more, after the error that counts."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, traceback)


def _wait_for_the_end(main: int, parent: int) -> None:
    """End this process when ``main`` says so or when ``parent``, most often the same, has gone."""
    while os.getppid() == parent:  # torch looks too, but not while it waits for a file
        received = signal.sigtimedwait({signal.SIGTERM}, _WATCH_SECONDS)
        if received is not None and received.si_pid == main:
            break
    os._exit(0)


def remember_workers() -> None:
    """Keep the handles of this process's children, which tell later what became of them."""
    _workers.update({child.pid: child for child in multiprocessing.active_children() if child.pid is not None})


@contextlib.contextmanager
def explain_dead_workers() -> Iterator[None]:
    """Turn what torch raises when a worker has died, anywhere in the main thread, into a ``WorkerError``.

    May be nested, and lets everything else pass.
    """
    before = _oom_kills()
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        message = str(error)
        if isinstance(error, ConnectionError | EOFError):  # a batch breaks off before the death is noticed
            message = _wait_for_a_death()
        if sentence := _explanation(message, before):
            raise WorkerError(sentence) from error
        raise


def _wait_for_a_death() -> str:
    """The message of torch, or one like it, about a worker that dies within a second; else an empty one."""
    end = time.monotonic() + 1
    try:
        while time.monotonic() < end:
            for pid, worker in list(_workers.items()):
                if worker.exitcode:  # neither None nor 0
                    return f"DataLoader worker (pid {pid}) exited unexpectedly"
            time.sleep(0.01)
    except RuntimeError as error:  # torch has noticed meanwhile
        return str(error)
    return ""


def _explanation(message: str, kills_before: dict[Path, int]) -> str | None:
    """One sentence about the worker whose death ``message`` reports; None if it is about something else."""
    if _SHARED_MEMORY.search(message):
        return f"a process that reads images found no room for a batch: {_shared_memory()}"
    found = _DEAD.search(message)
    if found is None:
        return None
    pid, number = int(found[1]), _signal_number(found[2])
    code = int(found[3]) if found[3] else None
    if (worker := _workers.pop(pid, None)) is not None:
        worker.join(1)  # so that torch does not come upon it, and raise, once more
        code = worker.exitcode if code is None else code
    if number is None and code is not None and code < 0:
        number = -code
    who = f"a process that reads images (pid {pid})"
    if number is None and found[2] is None:
        how = "unexpectedly" if code is None else f"with exit code {code}"
        return f"{who} ended {how}; DATASET.NUM_WORKERS 0 shows the error itself"
    return f"{who} was killed by {_signal_name(number, found[2])}: {_cause(number, kills_before)}"


def _cause(number: int | None, kills_before: dict[Path, int]) -> str:
    if number == signal.SIGKILL:
        now = _oom_kills()
        raised = [file for file, count in now.items() if count > kills_before.get(file, count)]
        less = "use fewer DATASET.NUM_WORKERS, smaller batches (SOLVER.TRAIN_BATCH_SIZE) or more memory"
        if any(file.is_relative_to("/sys/fs/cgroup") for file in raised):
            return f"out of memory, by the kernel's out-of-memory killer; {less}"
        if raised:
            return f"out of memory, it seems: the kernel's out-of-memory killer has been at work; {less}"
        return f"by hand or by a limit of the job, not by the kernel's out-of-memory killer; if of memory, {less}"
    if number == signal.SIGBUS:
        return _shared_memory()
    if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE):
        return "a library crashed, perhaps at a damaged image; DATASET.NUM_WORKERS 0 shows where"
    return "from outside; start the run again"


def _shared_memory() -> str:
    free = ""
    with contextlib.suppress(OSError):
        free = f" ({shutil.disk_usage('/dev/shm').free >> 20} MB free)"
    return (
        f"shared memory, /dev/shm{free}, is too small; enlarge it (docker run --shm-size 8g), "
        "or use fewer DATASET.NUM_WORKERS or smaller batches"
    )


def _signal_number(description: str | None) -> int | None:
    """Of the signal that the C library describes so."""
    return next((n for n in signal.valid_signals() if description and signal.strsignal(n) == description), None)


def _signal_name(number: int | None, description: str | None) -> str:
    with contextlib.suppress(ValueError):
        if number is not None:
            return signal.Signals(number).name
    return f"a signal ({description or number})"


def _oom_kills() -> dict[Path, int]:
    """How many processes the kernel has killed for want of memory, by each counter that can be read.

    Those of this process's control group, such as a container or a job, and that of the whole machine.
    """
    groups = {Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control")}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kind, place = line.split(":", 2)
            if kind == "":  # version 2
                groups.add(Path(f"/sys/fs/cgroup{place}/memory.events"))
            elif "memory" in kind.split(","):
                groups.add(Path(f"/sys/fs/cgroup/memory{place}/memory.oom_control"))
    counts = {}
    for file in (*groups, Path("/proc/vmstat")):
        with contextlib.suppress(OSError):
            if found := re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE):
                counts[file] = int(found[1])
    return counts
