"""One run of a sweep, in a process of its own: the sweep starts it, and it ends politely when the sweep is gone."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time

from isonet.config import load_cfg
from isonet.errors import CheckpointError, NonFiniteError, printable, run_cli
from isonet.files.run_folder import RunFolder, run_folder
from isonet.files.storage import FolderLock
from isonet.tools.cli import make_parser
from isonet.training.log import log_to_terminal
from isonet.training.run import AUTO, run_training

EXIT_DIVERGED = 3  # between this process and the sweep

_LOCK_SECONDS = 60.0  # for the run of a sweep that was killed to save and end
_EXAMPLES = "  python -m isonet.tools.sweep --help"


def main(args: argparse.Namespace) -> None:
    """Start the run, or go on with it."""
    threading.Thread(target=_stop_with_the_sweep, daemon=True).start()
    log_to_terminal()
    cfg = load_cfg(args.cfg, args.opts)
    _wait_for(run_folder(cfg, args.output))
    try:
        run_training(cfg, args.output, args.gpus, AUTO)
    except NonFiniteError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(EXIT_DIVERGED)


def _stop_with_the_sweep() -> None:
    """The sweep holds the other end of standard input, which ends with it, were it by SIGKILL."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for(folder: RunFolder) -> None:
    """Wait until no other process writes the run; who still does after a minute, ``run_training`` says."""
    end = time.monotonic() + _LOCK_SECONDS
    while time.monotonic() < end:
        try:
            with FolderLock(folder.path):
                return
        except CheckpointError:
            time.sleep(0.2)


if __name__ == "__main__":
    parser = make_parser(__doc__ or "", _EXAMPLES)
    parser.add_argument("--output", required=True, metavar="NAME", help="of the run")
    sys.exit(run_cli(main, parser.parse(sys.argv[1:])))
