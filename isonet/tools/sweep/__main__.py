"""Train a network with every combination of the values that config keys are given, and compare the runs.

A value with commas is several values; all combinations are run, one after another, and lie in
OUTPUT_DIR/DATASET.NAME/NAME-KEY=VALUE.../. Tables and a picture of them lie in OUTPUT_DIR/DATASET.NAME/NAME/. The
same command goes on with a sweep that was stopped or killed: finished runs are not repeated, nor those that diverged.
Lists are separated by semicolons: SOLVER.LR_MILESTONES "[30,60];[40,80]".
"""

from __future__ import annotations

import argparse
import re
import sys

from isonet.config import read_written_cfg
from isonet.errors import Stopped, UserError, printable, run_cli
from isonet.files.run_folder import run_folder
from isonet.files.storage import FolderLock, remove_leftovers, write_file
from isonet.launch import is_launched
from isonet.plots import MISSING, have_matplotlib
from isonet.tools.cli import make_parser, parse_gpu_ids
from isonet.tools.sweep.grid import Grid, Run, make_grid
from isonet.tools.sweep.picture import draw_sweep
from isonet.tools.sweep.processes import Child, run_all, start
from isonet.tools.sweep.results import Files, Result, difference, read_results, results_table, write_results
from isonet.training.devices import pick_devices
from isonet.training.log import log_to_terminal

EXAMPLES = """\
  python -m isonet.tools.sweep --cfg configs/digits_ISO20.yaml --output coeff ISON.ORTHO_COEFF 1e-5,1e-4,1e-3
  python -m isonet.tools.sweep --cfg configs/cifar10_ISO110.yaml --output both --gpus 0,1 --parallel \\
      ISON.ORTHO_COEFF 1e-5,1e-4,1e-3 SOLVER.BASE_LR 0.01,0.02 SOLVER.MAX_EPOCHS 30"""

_GPUS_HELP = (
    "GPUs of each run, or with --parallel of all runs, e.g. --gpus 0,1 (default: all visible ones, else the CPU)"
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The config, the name of the sweep, and keys with their values."""
    parser = make_parser(__doc__ or "", EXAMPLES, gpus_help=_GPUS_HELP)
    parser.prog = "python -m isonet.tools.sweep"
    parser.add_argument("--output", required=True, metavar="NAME", help="of the sweep, e.g. --output coeff")
    parser.add_argument(
        "--parallel", action="store_true", help="one run on each GPU at a time (without GPUs: as many on the CPU)"
    )
    argv = list(sys.argv[1:] if argv is None else argv)
    return parser.parse([f" {a}" if re.match(r"-[0-9.]", a) else a for a in argv])  # "-1,-0.5" is no option


def main(args: argparse.Namespace) -> None:
    """Run what is not finished yet; tell what has come of all."""
    log_to_terminal()
    if is_launched():
        raise UserError("a sweep is one process, which starts others: start it without torchrun")
    grid = make_grid(args.cfg, args.output, args.opts)
    slots = _slots(args.gpus, args.parallel)
    folder = run_folder(grid.cfg, args.output)
    if folder.holds_a_run():
        raise UserError(f"{folder.path} holds a run: choose another --output for the sweep")
    folder.path.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder.path):
        Sweep(grid, Files(folder.path)).run(slots)


def _slots(gpus: str | None, parallel: bool) -> list[str | None]:
    """What --gpus is for each of the runs that go on at the same time."""
    devices = pick_devices(gpus)
    if not parallel:
        return [gpus]
    if devices[0].type == "cuda":
        return [str(device.index) for device in devices]
    return [None] if gpus is None else [str(number) for number in parse_gpu_ids(gpus)]


class Sweep:
    """The runs of a grid, and the files that tell of them."""

    def __init__(self, grid: Grid, files: Files) -> None:
        self.grid, self.files = grid, files
        self.results = read_results(files, grid)
        self.draws = have_matplotlib()
        _check_same(files, grid)

    def run(self, slots: list[str | None]) -> None:
        """Run what is left. Raises ``Stopped`` after a signal, ``UserError`` where a run failed without diverging."""
        if not self.draws:
            print(f"{self.files.picture.name} is not drawn: {MISSING}", flush=True)
        remove_leftovers(self.files.path)
        write_file(self.files.cfg, self.grid.cfg.dump())
        left = [result.run for result in self.results if result.state == "waiting"]
        where = printable(self.files.path)
        print(f"{len(self.results)} runs, {len(left)} of them to do; what they come to is in {where}", flush=True)
        self._write()
        signal = run_all(left, slots, self._launch, self._on_end) if left else None
        print(results_table(self.grid, self.results), flush=True)
        undone = [result for result in self.results if result.state in ("waiting", "stopped")]
        if undone:
            by = f"by {signal}" if signal else "some of the runs were stopped"
            raise Stopped(f"{by}; {len(undone)} runs are not finished, and saved: the same command goes on with them")
        if failed := [result for result in self.results if result.state == "failed"]:
            raise UserError(f"{len(failed)} of {len(self.results)} runs failed; the first: {failed[0].reason}")

    def _launch(self, run: Run, gpus: str | None) -> Child:
        self._result(run).state = "running"
        return start(run, self.files.cfg, gpus, self.files.output(run))

    def _on_end(self, child: Child) -> None:
        """Read what a run that has ended came to, say it in a line, and renew the files."""
        result = self._result(child.run)
        result.state, result.reason = child.outcome
        result.update()
        self._write()
        print(f"{self._position(result)} {_told(result)}", flush=True)

    def _position(self, result: Result) -> str:
        done = sum(other.state not in ("waiting", "running") for other in self.results)
        return f"[{done}/{len(self.results)}] {result.run.title}:"

    def _result(self, run: Run) -> Result:
        return next(result for result in self.results if result.run is run)

    def _write(self) -> None:
        write_results(self.files, self.grid, self.results)
        if not self.draws:
            return
        try:
            picture = draw_sweep(self.grid.keys, self.results)
        except Exception as error:  # of a library that only draws
            self.draws = False
            print(f"{self.files.picture.name} is not drawn: {type(error).__name__}: {printable(error)}", flush=True)
        else:
            write_file(self.files.picture, picture)


def _told(result: Result) -> str:
    """A run that has ended, in one line."""
    summary = result.summary
    if result.state != "finished" or summary.best_top1 is None:
        return f"{result.state}: {printable(result.reason)}"
    return (
        f"best top-1 {summary.best_top1:.2f} % (epoch {summary.best_epoch}), last {summary.last_top1:.2f} %, "
        f"{summary.seconds or 0:.0f} s"
    )


def _check_same(files: Files, grid: Grid) -> None:
    """Refuse to mix runs of two configs in one sweep, or to take others' runs for its own. Raises ``UserError``."""
    if files.cfg.exists() and (other := difference(read_written_cfg(files.cfg), grid.cfg, grid.keys)):
        raise UserError(f"{files.path} is a sweep with {other}: choose another --output")
    for run in grid.runs:
        if run.folder.config.exists() and (other := difference(read_written_cfg(run.folder.config), run.cfg)):
            raise UserError(f"{run.folder.path} is a run with {other}: choose another --output")


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args()))
