"""The CIFAR-10 study: run what is missing, time its networks, write the tables of RESULTS.md.

python -m benchmarks.study list               every run: its command, and whether results/ has it
python -m benchmarks.study run                train what is missing, one after another; go on after an interruption
python -m benchmarks.study run ISO20 RES20    of these configs alone
                                              (several at once share the work: with OMP_NUM_THREADS=1, one a core)
python -m benchmarks.study speed              time an epoch of each config, on a machine that does nothing else
python -m benchmarks.study tables             write the tables and pictures of RESULTS.md from results/
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
    """What to do, and with which configs."""
    parser = Parser(
        prog="python -m benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--debug", action="store_true", help="show where an error arose")
    parser.add_argument("action", choices=("list", "run", "speed", "tables"))
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="of configs/study/, e.g. ISO20 (default: all)")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Do ``args.action``."""
    if unknown := set(args.configs) - {row.config for row in ROWS}:
        raise UserError(f"{', '.join(sorted(unknown))}: no row of the study (python -m benchmarks.study list)")
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
    """A run of each row first, then the rates, and last the seeds that tell how far to trust the rest."""
    runs = [(run.seed, run.rate != row.rate, run) for row in rows for run in row.runs()]
    return [run for _, _, run in sorted(runs, key=lambda entry: entry[:2])]


def train(runs: Sequence[Run]) -> None:
    """Train each of ``runs`` that no other process of this study is at, and that none has finished meanwhile."""
    for number, run in enumerate(runs, start=1):
        queue = run.folder().path.parent / "queue" / run.name
        queue.mkdir(parents=True, exist_ok=True)
        claim = FolderLock(queue)
        try:
            claim.acquire()
        except CheckpointError:
            print(f"{number} of {len(runs)}: another process is at {run.name}", flush=True)
            continue
        with claim:
            if not stored.read(run.name):
                print(f"{number} of {len(runs)}: {run.command}", flush=True)
                train_one(run)


def train_one(run: Run) -> None:
    """Train ``run``, or go on with it where it was interrupted, and store what it leaves."""
    refuse_another_config(run)
    command = [sys.executable, "train.py", *run.arguments[:4], "--resume", "auto", *run.opts]
    status = wait_for(subprocess.Popen(command, cwd=stored.REPO))
    if status == EXIT_STOPPED:
        raise Stopped(f"{run.name} is saved: the same command goes on with it")
    if status and not stored.divergence(run.folder().log):
        raise UserError(f"{run.name} ended with status {status}: see above, and {run.folder().log}")
    stored.write(run.name, stored.collect(run.command, run.folder()))


def refuse_another_config(run: Run) -> None:
    """Raise ``UserError`` where the folder of ``run`` holds one by a config that was edited since."""
    file = run.folder().config
    if not file.exists():
        return
    then, now = flat(parse_cfg(file.read_text(encoding="utf-8"), str(file))), flat(run.cfg())
    if differing := [key for key in now if then[key] != now[key]]:
        raise UserError(f"{run.folder().path} holds a run with another {', '.join(differing)}: remove the folder")


def refuse_changes() -> None:
    """Raise ``UserError`` where code or configs differ from the commit that results would name."""
    command = ["git", "status", "--porcelain", "--", "isonet", "configs/study", "train.py"]
    try:
        found = subprocess.run(command, cwd=stored.REPO, capture_output=True, text=True, check=False)
    except OSError:  # no git: results name no commit
        return
    if changed := [line[3:] for line in found.stdout.splitlines()]:
        raise UserError(f"{', '.join(changed[:5])}: commit the change first, for each result names its commit")


def wait_for(child: subprocess.Popen[bytes]) -> int:
    """The exit status of ``child``, which is given the time to save at a signal: a terminal sends it Ctrl-C, too."""
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
    sys.exit(run_cli(main, parse_args()))
