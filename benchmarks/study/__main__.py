"""The CIFAR-10 study: train the missing runs, time the networks, write the tables of RESULTS.md.

python -m benchmarks.study list               print every run: its command, and whether results/ has it
python -m benchmarks.study run                train the missing runs one after another, and resume interrupted ones
python -m benchmarks.study run ISO20 RES20    train the runs of these configs only
                                              (to share the work, start one command per core with OMP_NUM_THREADS=1)
python -m benchmarks.study speed              time an epoch of each config, on an idle machine
python -m benchmarks.study tables             write the tables and figures of RESULTS.md, and the figure of README.md
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.study import speed, stored, tables
from benchmarks.study.rows import Row, Run
from benchmarks.study.sections import ROWS
from isonet.config import flat, parse_cfg
from isonet.errors import EXIT_STOPPED, CheckpointError, Stopped, UserError, run_cli
from isonet.files.storage import FolderLock
from isonet.tools.cli import Parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the action and the configs."""
    parser = Parser(
        prog="python -m benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("action", choices=("list", "run", "speed", "tables"))
    parser.add_argument(
        "configs", nargs="*", metavar="CONFIG", help="name of a file in configs/study/, e.g. ISO20 (default: all)"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Carry out ``args.action``."""
    if unknown := set(args.configs) - {row.config for row in ROWS}:
        raise UserError(f"configs/study has no {', '.join(sorted(unknown))}; see python -m benchmarks.study list")
    rows = [row for row in ROWS if not args.configs or row.config in args.configs]
    runs = in_order(rows)
    if args.action == "list":
        for run in runs:
            print("stored " if stored.read(run.name) else "missing", run.command)
    elif args.action == "run":
        refuse_changes()
        train([run for run in runs if not stored.read(run.name)])
    elif args.action == "speed":
        speed.measure(rows)
    else:
        tables.write()


def in_order(rows: Sequence[Row]) -> list[Run]:
    """Sort the runs: first one run per row, then the other learning rates, and last the other seeds."""
    runs = [(run.seed, run.rate != row.rate, run) for row in rows for run in row.runs()]
    return [run for _, _, run in sorted(runs, key=lambda entry: entry[:2])]


def train(runs: Sequence[Run]) -> None:
    """Train each of ``runs``, except runs that another process of the study trains or has finished."""
    for number, run in enumerate(runs, start=1):
        queue = run.folder().path.parent / "queue" / run.name
        queue.mkdir(parents=True, exist_ok=True)
        claim = FolderLock(queue)
        try:
            claim.acquire()
        except CheckpointError:
            print(f"{number} of {len(runs)}: another process trains {run.name}", flush=True)
            continue
        with claim:
            if not stored.read(run.name):
                print(f"{number} of {len(runs)}: {run.command}", flush=True)
                train_one(run)


def train_one(run: Run) -> None:
    """Train ``run``, or resume it, and store its metrics."""
    refuse_another_config(run)
    command = [sys.executable, "train.py", *run.arguments[:4], "--resume", "auto", *run.opts]
    status = wait_for(subprocess.Popen(command, cwd=stored.REPO))
    if status == EXIT_STOPPED:
        raise Stopped(f"{run.name} is saved: the same command resumes it")
    if status and not stored.divergence(run.folder().log):
        raise UserError(f"{run.name} ended with exit code {status}: see the output above and {run.folder().log}")
    stored.write(run.name, stored.collect(run.command, run.folder()))


def refuse_another_config(run: Run) -> None:
    """Raise ``UserError`` if the folder of ``run`` contains a run with another config."""
    file = run.folder().config
    if not file.exists():
        return
    then, now = flat(parse_cfg(file.read_text(encoding="utf-8"), str(file))), flat(run.cfg())
    if differing := [key for key in now if then[key] != now[key] and key not in stored.WITHOUT_EFFECT]:
        raise UserError(f"{run.folder().path} contains a run with another {', '.join(differing)}: remove the folder")


def refuse_changes() -> None:
    """Raise ``UserError`` if code or configs have uncommitted changes, since results name their commit."""
    command = ["git", "status", "--porcelain", "--", "isonet", "configs/study", "train.py"]
    try:
        status = subprocess.run(command, cwd=stored.REPO, capture_output=True, text=True, check=False)
    except OSError:  # without git, the results do not name their commit
        return
    if changed := [line[3:] for line in status.stdout.splitlines()]:
        raise UserError(f"{', '.join(changed[:5])}: commit these changes first, because each result names its commit")


def wait_for(child: subprocess.Popen[bytes]) -> int:
    """Wait for ``child`` to save and exit after a signal, and return its exit code. A terminal sends Ctrl-C to both."""
    former = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number)),
    }
    try:
        return child.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args))
