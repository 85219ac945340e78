"""Mistakes that a user can make, as one family of exceptions with one place that prints them."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Something the user can put right. The message says what was wrong, where, and what to do."""


class ConfigError(UserError, ValueError):
    """A config file, an override, or a network that the config describes."""


class CheckpointError(UserError):
    """A checkpoint or a run folder that cannot be used as asked."""


class DataError(UserError):
    """A data set that is missing, incomplete or unreadable."""


class DeviceError(UserError, ValueError):
    """A device that was asked for and does not exist."""


class NonFiniteError(UserError):
    """A loss that became infinite or not a number."""


def run_cli(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a script's ``main`` and return its exit code: 0, or 2 after a mistake of the user's.

    A ``UserError`` is printed as one message on standard error; with ``--debug`` its traceback is
    shown as well. Every other exception is a defect of ours and keeps its traceback.
    """
    try:
        main(args)
    except UserError as error:
        if args.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
