"""Prepares the standard streams of a command.

A stream that is closed, full or unable to encode a letter does not end a run. This module does not import torch.
"""

import io
import os
import sys
from typing import TextIO


def open_streams() -> None:
    """Open the null device for each closed standard stream, and escape letters that a stream cannot encode.

    Otherwise the first files that a run opens get the descriptors 0 to 2, and C libraries print into them.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is ``number``
            os.set_inheritable(number, True)
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        if number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Redirect ``stream`` to the null device, so that flushing it at exit does not fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def print_to_stderr(text: str) -> None:
    """Print a line on standard error. If this fails, discard the stream."""
    if sys.stderr is not None:
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            discard(sys.stderr)


def flush_streams() -> None:
    """Flush standard output and standard error, and discard a stream that cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            discard(stream)
