"""Worker processes, which ignore the signals that stop a run, and errors that explain in one sentence why one died."""

import contextlib
import copy
import ctypes
import errno
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import TracebackType

from isonet.errors import WorkerError
from isonet.limits import too_many_files
from isonet.signals import STOP_SIGNALS

_NO_ROOM = re.compile(r"unable to .*(shared memory|</torch_)")  # torch's message
_SHARED_MEMORY = (
    "shared memory, /dev/shm, is too small; enlarge it (docker run --shm-size 8g), or use fewer DATASET.NUM_WORKERS or "
    "smaller batches"
)
_CAUSES = {
    "SIGKILL": "most often sent by the kernel's out-of-memory killer; use fewer DATASET.NUM_WORKERS, smaller batches "
    "(SOLVER.TRAIN_BATCH_SIZE) or more memory",
    "SIGBUS": _SHARED_MEMORY,
}
_OTHER_CAUSE = "perhaps a library crashed at a damaged image; DATASET.NUM_WORKERS 0 shows where"

_workers: weakref.WeakSet[BaseProcess] = weakref.WeakSet()


class _Flag:
    """A flag that processes share, with the methods of ``multiprocessing.Event`` that torch uses, but without a lock.

    A worker that is killed while it holds the lock of an ``Event`` never releases it. Torch, which sets the flag to end
    the other workers, would then wait forever (torch 2.11 to 2.15).
    """

    def __init__(self) -> None:
        self._value = multiprocessing.RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        self._value.value = True

    def is_set(self) -> bool:
        return bool(self._value.value)


def worker_context() -> BaseContext:
    """Return the context in which a ``DataLoader`` starts workers: the default one, with ``_Flag`` as its ``Event``."""
    context = copy.copy(multiprocessing.get_context())
    context.Event = _Flag  # type: ignore[assignment, method-assign]
    return context


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Block the stop signals in the worker processes that start in this block, and prepare to explain their deaths.

    This process receives the signals after the block.
    """
    masked = hasattr(signal, "pthread_sigmask")  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS) if masked else set()
    try:
        yield
    finally:
        if masked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _workers.update(multiprocessing.active_children())


def outlive_stop_signals(_: int) -> None:
    """Initialise a worker to ignore the signals that a terminal or a scheduler sends to every process of a run.

    Only the main process acts on these signals, and it needs batches until it stops. A SIGTERM from the main process
    ends the worker: when the main process exits, it sends SIGTERM to the workers that are left.
    """
    sys.excepthook = _print_unless_disconnected
    if not hasattr(signal, "pthread_sigmask"):  # on Windows, a worker receives only Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_wait_for_the_end, daemon=True).start()
    else:  # macOS: every SIGTERM ends the worker
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _wait_for_the_end() -> None:
    """Wait until the main process sends SIGTERM, then end this process, even if its main thread is blocked."""
    main = multiprocessing.parent_process()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != (main.pid if main else os.getppid()):
        pass
    os._exit(0)  # like torch's own handler: any other exit code raises an error in the main process


def _print_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error, unless the main process is gone: then only the error that ended the main process counts."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


@contextlib.contextmanager
def explain_dead_workers() -> Iterator[None]:
    """Replace the error that torch raises when a worker has died by a ``WorkerError``.

    Torch raises it anywhere in the main thread. Other errors do not change, and blocks may be nested.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(error):
            raise WorkerError(f"too many open files: {too_many_files()}") from error
        if _NO_ROOM.search(str(error)):
            raise WorkerError(f"a process that reads images has no room for a batch: {_SHARED_MEMORY}") from error
        torch_noticed = "DataLoader worker (pid" in str(error)
        if not torch_noticed and not isinstance(error, ConnectionError | EOFError):
            raise
        if dead := _dead_worker():
            _workers.discard(dead)
            code = dead.exitcode or 0
            end = {-number: number.name for number in signal.Signals}.get(code, f"exit code {code}")
            cause = _CAUSES.get(end, _OTHER_CAUSE)
            raise WorkerError(f"a process that reads images (pid {dead.pid}) ended by {end}: {cause}") from error
        if torch_noticed:
            raise WorkerError(f"a process that reads images ended unexpectedly: {_OTHER_CAUSE}") from error
        raise


def _dead_worker() -> BaseProcess | None:
    """Return a worker that ended by a signal or an error. Wait at most a second, as a batch may fail before it ends."""
    for _ in range(100):
        with contextlib.suppress(RuntimeError):  # torch raises it when it detects the death
            if dead := next((worker for worker in _workers if worker.exitcode), None):
                return dead
            time.sleep(0.01)
    return None
