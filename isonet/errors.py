"""The exceptions for errors that a user can correct, and the function that prints them."""

import argparse
import errno
import sys
import traceback
from collections.abc import Callable

from isonet.limits import too_many_files
from isonet.streams import discard, flush_streams, open_streams, print_to_stderr

# Exit codes of the scripts. 75 is EX_TEMPFAIL of sysexits.h: the same command may be tried again
EXIT_DONE, EXIT_USER_ERROR, EXIT_STOPPED, EXIT_INTERRUPTED = 0, 2, 75, 130

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class UserError(Exception):
    """An error that the user can correct. The message says in one line what is wrong, where, and what to do.

    where: the rank that raised the error, printed before the message; "" for rank 0 and for a run of one process.
    on_all_ranks: whether all ranks of a run raise an error at this point, so that no rank waits for another rank.
    """

    where = ""
    on_all_ranks = False


class ConfigError(UserError, ValueError):
    """Raised for an invalid config file or override, or for a network that does not exist."""


class CheckpointError(UserError):
    """Raised for a checkpoint or a run folder that cannot be used in the requested way."""


class StorageError(UserError, OSError):
    """Raised for a file that cannot be written: no space, no permission, or a folder that no longer exists."""


class DataError(UserError):
    """Raised for a data set that is missing, incomplete or unreadable."""


class WorkerError(UserError):
    """Raised if a process that reads images has died."""


class DeviceError(UserError, ValueError):
    """Raised for a device that does not exist or has too little memory."""


class RankError(UserError):
    """Raised on each rank of a run if another rank has failed, cannot be reached, or differs from rank 0.

    printed_here: whether this rank prints the message even if it is not rank 0. If the run has several machines, the
    rank that the message names does so.
    """

    printed_here = False


class NonFiniteError(UserError):
    """Raised for a non-finite loss, gradient or output."""


class Stopped(Exception):  # noqa: N818 - not an error
    """Raised after a signal has stopped a run and its state is saved. The message says how to resume it."""


def run_cli(
    main: Callable[[argparse.Namespace], None], args: argparse.Namespace | Callable[[], argparse.Namespace]
) -> int:
    """Run a script's ``main`` and return its exit code.

    args: the options, or a function that parses them. It is called when the standard streams are open.

    A ``UserError`` or an ``OSError`` is printed as one line on standard error, with ``--debug`` after a traceback.
    Every other exception is a bug and keeps its traceback.
    """
    open_streams()
    options = argparse.Namespace()
    try:
        options = args() if callable(args) else args
        main(options)
        sys.stdout.flush()  # at exit, Python would print a traceback for an error
    except BrokenPipeError:  # the reader of the output has ended, as with "| head"
        discard(sys.stdout)
        return EXIT_INTERRUPTED
    except (UserError, OSError, UnicodeEncodeError) as error:  # OSError: raised by the system, e.g. for a full disk
        if getattr(options, "debug", False):
            print_to_stderr(traceback.format_exc().rstrip())
        print_to_stderr(f"error: {getattr(error, 'where', '')}{printable(_explained(error))}")
        return EXIT_USER_ERROR
    except Stopped as stop:
        print_to_stderr(f"stopped: {printable(stop)}")
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print_to_stderr("interrupted")
        return EXIT_INTERRUPTED
    finally:
        flush_streams()
    return EXIT_DONE


def _explained(error: Exception) -> object:
    """Return the message of ``error``. The system names the file that cannot be written, but not a standard stream."""
    if isinstance(error, UnicodeEncodeError):
        return f"this locale's encoding, {error.encoding}, lacks letters of {error.object!a}: set PYTHONUTF8=1"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many open files: {too_many_files()}"
    if type(error) is OSError and not error.filename and error.errno in _FULL:
        return f"standard output cannot be written ({error.strerror}): make room, or redirect it to another file"
    return error


def printable(message: object) -> str:
    """Return ``message`` as one line without control characters, which names in hostile files may contain."""
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in str(message))
