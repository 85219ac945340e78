"""Mistakes and faults that a user can put right, as one family of exceptions with one place that prints them."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable

# Exit codes of the scripts, listed in README. 75 is EX_TEMPFAIL of sysexits.h: the same command may be tried again
EXIT_DONE, EXIT_USER_ERROR, EXIT_STOPPED, EXIT_INTERRUPTED = 0, 2, 75, 130


class UserError(Exception):
    """Something the user can put right. The message says what was wrong, where, and what to do.

    where: which process of several it was, to print before the message.
    """

    where = ""


class ConfigError(UserError, ValueError):
    """A config file, an override, or a network that the config describes."""


class CheckpointError(UserError):
    """A checkpoint or a run folder that cannot be used as asked."""


class StorageError(UserError, OSError):
    """A file that could not be written: no space, no permission, a folder that is gone."""


class DataError(UserError):
    """A data set that is missing, incomplete or unreadable."""


class WorkerError(UserError):
    """A process that reads images and died."""


class DeviceError(UserError, ValueError):
    """A device that was asked for and does not exist, or has too little memory."""


class NonFiniteError(UserError):
    """A loss or a gradient that became infinite or not a number."""


class Stopped(Exception):  # noqa: N818 - not an error
    """A run that a signal stopped and that saved where it was. The message says how to go on."""


def run_cli(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a script's ``main`` and return its exit code.

    A ``UserError``, and what the system refuses, is printed as one line on standard error; with
    ``--debug`` its traceback is shown as well. Every other exception is a defect of ours and keeps its traceback.
    """
    try:
        main(args)
    except UserError as error:
        if args.debug:
            traceback.print_exc()
        print(f"error: {error.where}{printable(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Stopped as stop:
        print(f"stopped: {printable(stop)}", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # who read our output has gone, as with "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at exit
        return EXIT_INTERRUPTED
    except OSError as error:  # the machine's fault, such as an output on a full disk
        if args.debug:
            traceback.print_exc()
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        print(f"error: {printable(what)}", file=sys.stderr)
        return EXIT_USER_ERROR
    return EXIT_DONE


def printable(message: object) -> str:
    """``message`` as one line without control characters: names in hostile files could else command the terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in str(message))
