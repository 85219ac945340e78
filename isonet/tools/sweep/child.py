"""One run of a sweep in its own process. It saves and exits when the sweep closes its standard input, or dies."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time

from isonet.config import load_cfg
from isonet.errors import CheckpointError, NonFiniteError, printable, run_cli
from isonet.files.run_folder import AUTO, run_folder
from isonet.files.storage import FolderLock
from isonet.tools.cli import make_parser
from isonet.training.log import log_to_terminal

EXIT_DIVERGED = 3  # for the sweep only

_LOCK_SECONDS = 60  # for the run of a sweep that was killed to save and exit


def main(args: argparse.Namespace) -> None:
    """Start the run, or resume it."""
    from isonet.training.run import run_training

    threading.Thread(target=_stop_with_the_sweep, daemon=True).start()
    log_to_terminal()
    cfg = load_cfg(args.cfg, args.opts)
    for _ in range(_LOCK_SECONDS):  # if the folder is still locked after that, run_training says by whom
        with contextlib.suppress(CheckpointError), FolderLock(run_folder(cfg, args.output).path):
            break
        time.sleep(1)
    try:
        run_training(cfg, args.output, args.gpus, AUTO)
    except NonFiniteError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(EXIT_DIVERGED)


def _stop_with_the_sweep() -> None:
    """Send this process SIGTERM at the end of its standard input, which the sweep holds open while it lives."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    parser = make_parser(__doc__ or "", "  python -m isonet.tools.sweep --help")
    parser.add_argument("--output", required=True, metavar="NAME", help="the name of the run")
    sys.exit(run_cli(main, parser.parse(sys.argv[1:])))
