"""Worker processes: they outlive the signals that stop a run, and the death of one is explained in one sentence."""

from __future__ import annotations

import atexit
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
from isonet.signals import STOP_SIGNALS

_WATCH_SECONDS = 2.0  # between two checks that the main process still exists

_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? (\d+)")
_SHARED_MEMORY = re.compile(r"unable to .*(shared memory|</torch_)")

_workers: weakref.WeakValueDictionary[int, BaseProcess] = weakref.WeakValueDictionary()

# torch raises for every worker that a signal ends; multiprocessing ends those that are left in this way at exit
atexit.register(signal.signal, signal.SIGCHLD, signal.SIG_DFL)


@contextlib.contextmanager
def held_stop_signals() -> Iterator[None]:
    """Deliver the signals that stop a run only after the block, and to processes started in it only when they ask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_stop_signals(_: int) -> None:
    """Initialise a worker: it ignores the signals that a terminal or a scheduler sends to every process of a run.

    Only the main process acts on them, and it still wants its batches. The worker obeys a SIGTERM of the main process
    itself, which ends the workers that are left when it exits.
    """
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _show_unless_the_main_process_is_gone
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        main = multiprocessing.parent_process()
        if main is not None and main.pid is not None:
            threading.Thread(target=_wait_for_the_end, args=(main.pid, os.getppid()), daemon=True).start()


def _show_unless_the_main_process_is_gone(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Do not print that nobody receives a batch: the error that ended the main process is the one that counts."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, traceback)


def _wait_for_the_end(main: int, parent: int) -> None:
    """End this process when ``main`` sends SIGTERM or when ``parent``, usually the same, is gone."""
    while os.getppid() == parent:  # torch checks as well, but not while a worker waits for a file
        received = signal.sigtimedwait({signal.SIGTERM}, _WATCH_SECONDS)
        if received is not None and received.si_pid == main:
            break
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.raise_signal(signal.SIGTERM)  # ends the process at once, whatever its main thread waits for


def remember_workers() -> None:
    """Keep the handles of this process's children, to learn later how they ended."""
    _workers.update({child.pid: child for child in multiprocessing.active_children() if child.pid is not None})


@contextlib.contextmanager
def explain_dead_workers() -> Iterator[None]:
    """Turn the error that torch raises, anywhere in the main thread, when a worker has died into a ``WorkerError``.

    May be nested; lets every other error pass.
    """
    before = oom_kills()
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if _SHARED_MEMORY.search(str(error)):
            raise WorkerError(f"a process that reads images has no room for a batch: {_shared_memory()}") from error
        match = _DEAD.search(_wait_for_a_death() if isinstance(error, ConnectionError | EOFError) else str(error))
        if match:
            raise WorkerError(_explanation(int(match[1]), before)) from error
        raise


def _wait_for_a_death() -> str:
    """Torch's message, or one like it, about a worker that dies within a second; empty if none does.

    A batch breaks off before torch notices the death of the worker that sends it.
    """
    end = time.monotonic() + 1
    try:
        while time.monotonic() < end:
            for pid, worker in list(_workers.items()):
                if worker.exitcode:  # neither None nor 0
                    return f"DataLoader worker (pid {pid})"
            time.sleep(0.01)
    except RuntimeError as error:  # torch has noticed it meanwhile
        return str(error)
    return ""


def _explanation(pid: int, kills_before: dict[Path, int]) -> str:
    """One sentence about the worker ``pid``, which has died."""
    who, code = f"a process that reads images (pid {pid})", None
    if (worker := _workers.pop(pid, None)) is not None:
        worker.join(1)  # so that torch does not raise for it once more
        code = worker.exitcode
    if code is None or code >= 0:
        how = "unexpectedly" if code is None else f"with exit code {code}"
        return f"{who} ended {how}; DATASET.NUM_WORKERS 0 shows the error itself"
    names = {number.value: number.name for number in signal.Signals}
    return f"{who} was killed by {names.get(-code, f'signal {-code}')}: {_cause(-code, kills_before)}"


def _cause(number: int, kills_before: dict[Path, int]) -> str:
    if number == signal.SIGKILL:
        now = oom_kills()
        raised = [file for file, count in now.items() if count > kills_before.get(file, count)]
        less = "use fewer DATASET.NUM_WORKERS, smaller batches (SOLVER.TRAIN_BATCH_SIZE) or more memory"
        if any(file.is_relative_to("/sys/fs/cgroup") for file in raised):
            return f"out of memory, by the kernel's out-of-memory killer; {less}"
        if raised:
            return f"probably out of memory: the kernel's out-of-memory killer killed a process meanwhile; {less}"
        return f"by a person or a limit of the job, not by the kernel's out-of-memory killer; if of memory, {less}"
    if number == signal.SIGBUS:
        return _shared_memory()
    if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE):
        return "a library crashed, perhaps at a damaged image; DATASET.NUM_WORKERS 0 shows where"
    return "from outside the run; start it again"


def _shared_memory() -> str:
    free = ""
    with contextlib.suppress(OSError):
        free = f" ({shutil.disk_usage('/dev/shm').free >> 20} MB free)"
    return (
        f"shared memory, /dev/shm{free}, is too small; enlarge it (docker run --shm-size 8g), "
        "or use fewer DATASET.NUM_WORKERS or smaller batches"
    )


def oom_kills() -> dict[Path, int]:
    """How many processes the kernel has killed because memory was full, by each counter that can be read.

    The counters are those of this process's control groups, such as a container or a job, and that of the machine.
    """
    files = [Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events")]
    with contextlib.suppress(OSError):
        groups = re.findall(r"^0::/(.+)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
        files += [Path("/sys/fs/cgroup", group, "memory.events") for group in groups]
    counts = {}
    for file in files:
        with contextlib.suppress(OSError):
            if match := re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE):
                counts[file] = int(match[1])
    return counts
