"""The output of a run: terminal, ``log.txt``, progress within an epoch, versions. Only ``versions`` imports torch."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import subprocess
import sys
import time
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from isonet.agreement import package_version
from isonet.errors import printable
from isonet.files.storage import write_file
from isonet.launch import is_main

if TYPE_CHECKING:
    from isonet.data import Loader

log = logging.getLogger("isonet")

PLAIN_LINE_SECONDS = 15.0  # between two progress lines if there is no terminal for a bar
_SHOWN = 10  # the number of unreadable images that are listed on the terminal


class _TerminalHandler(logging.Handler):
    """Prints above a progress bar, not into it. If the output is closed or full, the run continues without it."""

    failed = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.failed or sys.stdout is None:  # None if the shell has closed it
            return
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            self.failed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python fails again at exit
            print(f"warning: nothing more can be printed ({error.strerror})", file=sys.stderr)


def log_to_terminal() -> None:
    """Print the project's log on standard output, with warnings marked. Only rank 0 prints it."""
    if not is_main():
        log.addHandler(logging.NullHandler())
        log.propagate = False
        return
    _replace_handlers(_TerminalHandler, _TerminalHandler(), "%(message)s")
    log.propagate = False


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
            print(f"warning: {self.baseFilename} cannot be written ({sys.exc_info()[1]})", file=sys.stderr)


def log_to_file(path: Path) -> None:
    """Append the project's log, with times, to ``path``: what ``keep_for_file`` has kept, and all later records."""
    handler = _LogFile(path, encoding="utf-8")
    _replace_handlers(logging.FileHandler, handler, "%(asctime)s %(message)s")
    for memory in [h for h in log.handlers if isinstance(h, MemoryHandler)]:
        memory.setTarget(handler)
    _replace_handlers(MemoryHandler, None)  # closing it writes its records to the file


def note_failure(path: Path, error: BaseException) -> None:
    """Append an error, which the script prints itself, to the log file at ``path``, if that is possible."""
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {type(error).__name__}: {printable(error)}\n")


class _LevelFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = "\n".join(printable(line) for line in super().format(record).split("\n"))
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


def _replace_handlers(kind: type[logging.Handler], handler: logging.Handler | None, pattern: str = "") -> None:
    for old in [h for h in log.handlers if isinstance(h, kind)]:
        log.removeHandler(old)
        old.close()
    if handler:
        handler.setFormatter(_LevelFormatter(pattern))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


class EpochDisplay:
    """Progress within one epoch: a bar on a terminal, a plain line every 15 seconds elsewhere. A context manager."""

    def __init__(self, epoch: int, max_epochs: int, done: int, steps: int, hidden: bool = False) -> None:
        """done: the number of ``steps`` already taken. hidden: whether to show nothing."""
        self.title = f"epoch {epoch}/{max_epochs}"
        self.steps = steps
        self.last_line = time.monotonic()
        plain = hidden or not sys.stderr.isatty()
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
