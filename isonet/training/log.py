"""The output of a run: terminal, ``log.txt``, progress within an epoch, versions. Only ``versions`` imports torch."""

from __future__ import annotations

import contextlib
import logging
import mmap
import platform
import subprocess
import sys
import time
import warnings
import zlib
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from isonet.agreement import package_version
from isonet.errors import printable
from isonet.files.storage import write_file
from isonet.launch import is_main
from isonet.streams import discard, print_to_stderr

if TYPE_CHECKING:
    from isonet.data import Loader

log = logging.getLogger("isonet")

PLAIN_LINE_SECONDS = 15.0  # between two progress lines if there is no terminal for a bar
_SHOWN = 10  # the number of unreadable images that are listed on the terminal


class _TerminalHandler(logging.Handler):
    """Prints warnings on standard error and other records on standard output, above a progress bar.

    If one of the streams is full or its reader has ended, the run continues without it.

    required: whether to raise ``OSError`` instead if standard output cannot be written.
    """

    def __init__(self, level: int, required: bool) -> None:
        super().__init__(level)
        self.required = required

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        if stream is None:  # the stream is closed, and the program has not called open_streams
            return
        try:
            tqdm.write(self.format(record), file=stream)
            stream.flush()
        except OSError as error:
            if stream is sys.stdout and self.required and not isinstance(error, BrokenPipeError):
                raise
            discard(stream)
            if stream is sys.stdout:
                print_to_stderr(f"warning: nothing more can be printed ({error.strerror})")


def log_to_terminal(level: int = logging.INFO, required: bool = False) -> None:
    """Print the project's log from ``level`` on, and Python's warnings. Only rank 0 prints them.

    Warnings are marked and printed on standard error, and other records on standard output. required: whether to raise
    ``OSError`` if standard output cannot be written, because it is the result of the command.
    """
    _log_python_warnings()
    log.propagate = False
    if not is_main():
        log.addHandler(logging.NullHandler())
        return
    _replace_handlers(_TerminalHandler, _TerminalHandler(level, required))


def _log_python_warnings() -> None:
    """Log each Python warning once, even if several images and workers cause it."""
    logged = mmap.mmap(-1, 1 << 16)  # forked workers share this memory

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
        place = zlib.crc32(f"{category.__name__} {filename}:{lineno}".encode("utf-8", "replace")) % len(logged)
        if not logged[place]:
            logged[place] = 1
            log.warning("%s: %s (%s, line %d; logged once)", category.__name__, message, filename, lineno)

    warnings.showwarning = show


def keep_for_file() -> None:
    """Keep log records in memory until ``log_to_file`` names a file, and close the file of an earlier run."""
    _replace_handlers(logging.FileHandler, None)
    _replace_handlers(MemoryHandler, MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1))


class _LogFile(logging.FileHandler):
    """A log file. If the disk is full, the run continues without it, after one warning."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not self.failed:
            self.failed = True
            print_to_stderr(f"warning: {self.baseFilename} cannot be written ({sys.exc_info()[1]})")


def log_to_file(path: Path) -> None:
    """Append the project's log, with times, to ``path``: what ``keep_for_file`` has kept, and all later records."""
    _replace_handlers(logging.FileHandler, handler := _LogFile(path, encoding="utf-8"), dated=True)
    for memory in [h for h in log.handlers if isinstance(h, MemoryHandler)]:
        memory.setTarget(handler)
    _replace_handlers(MemoryHandler, None)  # closing it writes its records to the file


def note_failure(path: Path, error: BaseException) -> None:
    """Append an error, which the script prints itself, to the log file at ``path``, if that is possible."""
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {type(error).__name__}: {printable(error)}\n")


class _LineFormatter(logging.Formatter):
    """Formats a record as printable lines. A warning begins with its level. dated: whether each line has the time."""

    def __init__(self, dated: bool) -> None:
        super().__init__()
        self.dated = dated

    def format(self, record: logging.LogRecord) -> str:
        time = f"{self.formatTime(record)} " if self.dated else ""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        lines = f"{level}{super().format(record)}".split("\n")
        return "\n".join(time + printable(line) for line in lines)


def _replace_handlers(kind: type[logging.Handler], handler: logging.Handler | None, dated: bool = False) -> None:
    for old in [h for h in log.handlers if isinstance(h, kind)]:
        log.removeHandler(old)
        old.close()
    if handler:
        handler.setFormatter(_LineFormatter(dated))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


class EpochDisplay:
    """Progress within one epoch: a bar on a terminal, a plain line every 15 seconds elsewhere. A context manager."""

    def __init__(self, epoch: int, max_epochs: int, done: int, steps: int, hidden: bool = False) -> None:
        """done: the number of ``steps`` already taken. hidden: whether to show nothing."""
        self.title = f"epoch {epoch}/{max_epochs}"
        self.steps = steps
        self.last_line = time.monotonic()
        plain = hidden or not (sys.stderr and sys.stderr.isatty())
        self.bar = tqdm(total=steps, initial=done, desc=self.title, leave=False, unit="step", disable=plain)

    def __enter__(self) -> EpochDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self) -> None:
        """Count a step."""
        self.bar.update()

    def show(self, step: int, means: dict[str, float]) -> None:
        """Show the means so far."""
        numbers = (
            f"cross entropy {means['cross_entropy']:.4f}, penalty {means['penalty']:.4g}, "
            f"train top-1 {means['train_top1']:.2f}"
        )
        self.bar.set_postfix_str(numbers, refresh=False)
        if self.bar.disable and time.monotonic() - self.last_line >= PLAIN_LINE_SECONDS:
            log.info("%s, step %d/%d: %s", self.title, step, self.steps, numbers)
            self.last_line = time.monotonic()


def list_skipped(loaders: dict[str, Loader], file: Path | None = None) -> None:
    """Log the images that could not be read. With ``file``, log the first of them and list all of them in the file."""
    skipped = [
        f"{split}: {printable(path)}: {why}"
        for split, loader in loaders.items()
        for path, why in loader.skipped.items()
    ]
    if not skipped:
        return
    log.warning("%d images could not be read (DATASET.ON_ERROR skip):", len(skipped))
    for line in skipped if file is None else skipped[:_SHOWN]:
        log.warning("  %s", line)
    if file is not None:
        try:  # with the images that the run listed before it was resumed
            before = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
            write_file(file, "".join(f"{line}\n" for line in dict.fromkeys([*before, *skipped])))
            log.warning("all of them are listed in %s", file)
        except OSError as error:  # the error must not hide why the run ends
            log.warning("%s", error)


def versions() -> dict[str, Any]:
    """Return the versions of software and hardware, the command line and, in a git checkout, the commit."""
    import torch

    packages = ("isonet", "torchvision", "numpy", "pillow", "yacs")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,  # with the build, such as +cu128
        **{name: package_version(name) for name in packages},
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "commit": _commit(Path(__file__).parent),
    }


def _commit(folder: Path) -> str | None:
    """Return the commit of the checkout around ``folder``, marked "dirty" if files differ from it, or None."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
