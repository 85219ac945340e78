"""The standard streams of a command: none of them ends a run because it is closed, full or of a small encoding.

This module does not import torch.
"""

import io
import os
import sys
from typing import TextIO


def open_streams() -> None:
    """Open the null device for each standard stream that is closed, and escape letters that a stream cannot encode.

    Otherwise the first files that a run opens get the numbers 0 to 2, to which other libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(number, True)
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        if number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Send the output of ``stream`` to the null device. Python would fail again when it flushes the stream at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def tell(text: str) -> None:
    """Print a line on standard error, if that is possible."""
    if sys.stderr is not None:
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            discard(sys.stderr)


def flush_streams() -> None:
    """Flush both outputs, and discard what cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            discard(stream)
