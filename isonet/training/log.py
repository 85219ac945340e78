"""What a run prints and writes down: terminal, ``log.txt``, progress within an epoch, versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
import time
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from isonet.errors import printable

log = logging.getLogger("isonet")

PLAIN_LINE_SECONDS = 15.0  # between two progress lines where there is no terminal for a bar


class _TerminalHandler(logging.Handler):
    """Prints above a progress bar instead of through it. An output that is closed or full does not cost the run."""

    failed = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.failed or sys.stdout is None:  # None where the shell has closed it
            return
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            self.failed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails once more at exit
            print(f"warning: nothing more can be printed ({error.strerror})", file=sys.stderr)


def log_to_terminal() -> None:
    """Show the project's log on standard output, warnings marked as such.

    Of several processes that a launcher started the first one does; a warning of the others would be its own again.
    """
    if os.environ.get("RANK", "0") != "0":
        log.addHandler(logging.NullHandler())
        log.propagate = False
        return
    _replace_handlers(_TerminalHandler, _TerminalHandler(), _LevelFormatter("%(message)s"))
    log.propagate = False


def keep_for_file() -> None:
    """Remember what is logged until ``log_to_file`` knows where to write it; an earlier run's file is closed."""
    _remove_handlers(logging.FileHandler)
    memory = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1)
    _replace_handlers(MemoryHandler, memory, _LevelFormatter())


class _LogFile(logging.FileHandler):
    """A disk that is full costs the log, which is said once, and not the run."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not self.failed:
            self.failed = True
            print(f"warning: {self.baseFilename} cannot be written ({sys.exc_info()[1]})", file=sys.stderr)


def log_to_file(path: Path) -> None:
    """Append the project's log, with times, to ``path``: what ``keep_for_file`` remembered, and all from now on."""
    handler = _LogFile(path, encoding="utf-8")
    _replace_handlers(logging.FileHandler, handler, _LevelFormatter("%(asctime)s %(message)s"))
    for memory in [h for h in log.handlers if isinstance(h, MemoryHandler)]:
        memory.setTarget(handler)
        memory.close()
        log.removeHandler(memory)


def note_failure(path: Path, error: BaseException) -> None:
    """Write an error, which the script prints by itself, to the end of ``path`` as well, where that can be done."""
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {type(error).__name__}: {printable(error)}\n")


class _LevelFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = "\n".join(printable(line) for line in super().format(record).split("\n"))
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


def _replace_handlers(kind: type[logging.Handler], handler: logging.Handler, formatter: logging.Formatter) -> None:
    _remove_handlers(kind)
    handler.setFormatter(formatter)
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _remove_handlers(kind: type[logging.Handler]) -> None:
    for old in [h for h in log.handlers if isinstance(h, kind)]:
        log.removeHandler(old)
        old.close()


class EpochDisplay:
    """Progress within one epoch: a bar on a terminal, else a plain line every so often."""

    def __init__(self, epoch: int, max_epochs: int, done: int, steps: int, hidden: bool = False) -> None:
        """``done`` of ``steps`` were taken before. hidden: show nothing."""
        self.title = f"epoch {epoch}/{max_epochs}"
        self.steps = steps
        self.last_line = time.monotonic()
        plain = hidden or not sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=done, desc=self.title, leave=False, unit="step", disable=plain)

    def advance(self) -> None:
        self.bar.update()

    def show(self, step: int, means: dict[str, float]) -> None:
        """Show the means so far; they were read from the device for this."""
        numbers = (
            f"cross entropy {means['cross_entropy']:.4f}, penalty {means['penalty']:.4g}, "
            f"train top-1 {means['train_top1']:.2f}"
        )
        self.bar.set_postfix_str(numbers, refresh=False)
        if self.bar.disable and time.monotonic() - self.last_line >= PLAIN_LINE_SECONDS:
            log.info("%s, step %d/%d: %s", self.title, step, self.steps, numbers)
            self.last_line = time.monotonic()

    def close(self) -> None:
        self.bar.close()


def versions() -> dict[str, Any]:
    """Versions of Python, the packages and the hardware, the command line and, in a git checkout, the commit."""
    packages = ("isonet", "torchvision", "numpy", "pillow", "yacs")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,  # with the build, such as +cu128
        **{name: _version(name) for name in packages},
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "commit": _commit(Path(__file__).parent),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def _commit(folder: Path) -> str | None:
    """The commit of the checkout around ``folder``, marked where files differ from it; None outside of one."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
