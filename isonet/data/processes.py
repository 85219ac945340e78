"""Worker processes: they outlive the signals that stop a run, and the death of one is explained in one sentence."""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from types import TracebackType

from isonet.errors import WorkerError
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


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Start worker processes in this block: they begin with the stop signals blocked, and their deaths are explained.

    This process receives the signals after the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _workers.update(multiprocessing.active_children())


def outlive_stop_signals(_: int) -> None:
    """Initialise a worker: it ignores the signals that a terminal or a scheduler sends to every process of a run.

    Only the main process acts on them, and it still needs batches. The worker obeys a SIGTERM of the main process
    itself, which ends the workers that are left when it exits.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    sys.excepthook = _print_unless_disconnected
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_wait_for_the_end, daemon=True).start()
    else:  # macOS: every SIGTERM ends the worker
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _wait_for_the_end() -> None:
    """End this process, whatever its main thread waits for, when the main process sends SIGTERM."""
    main = multiprocessing.parent_process()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != (main.pid if main else os.getppid()):
        pass
    os._exit(0)  # as torch's own handler does: for any other exit code the main process would raise an error


def _print_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print nothing if the main process has gone: the error that ended it is the one that counts."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


@contextlib.contextmanager
def explain_dead_workers() -> Iterator[None]:
    """Turn the error that torch raises, anywhere in the main thread, when a worker has died into a ``WorkerError``.

    May be nested; lets every other error pass.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if _NO_ROOM.search(str(error)):
            raise WorkerError(f"a process that reads images has no room for a batch: {_SHARED_MEMORY}") from error
        torch_noticed = "DataLoader worker (pid" in str(error)
        if isinstance(error, RuntimeError) and not torch_noticed:
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
    """A worker that ended by a signal or an error, at most a second from now: a batch may break off before."""
    for _ in range(100):
        with contextlib.suppress(RuntimeError):  # which torch raises when it notices the death
            if dead := next((worker for worker in _workers if worker.exitcode), None):
                return dead
            time.sleep(0.01)
    return None
