"""The CPU cores and the open files that the system allows. This module does not import torch."""

import contextlib
import math
import os

_FILES_PER_WORKER = 16  # in two loaders: pipes, and the shared memory of prefetched batches
_OTHER_FILES = 16


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, which a scheduler may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def file_limit(wanted: int = 0) -> float:
    """Raise the limit of open files to ``wanted`` if the system allows it, and return the limit."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    unlimited, (soft, hard) = resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != unlimited and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == unlimited else min(wanted, hard), hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == unlimited else soft


def workers_within_limit(workers: int) -> int:
    """Return the number of worker processes, at most ``workers``, that the limit of open files allows."""
    try:
        free = -len(os.listdir("/proc/self/fd")) - _OTHER_FILES
    except OSError:  # not on Linux
        free = -2 * _OTHER_FILES
    limit = file_limit(_FILES_PER_WORKER * workers - free)
    return workers if limit == math.inf else max(0, min(workers, int(limit + free) // _FILES_PER_WORKER))


def too_many_files() -> str:
    """Return the limit of open files and a remedy, as the end of a message."""
    return f"the limit of open files is {file_limit()} (ulimit -n); raise it, or lower DATASET.NUM_WORKERS"
