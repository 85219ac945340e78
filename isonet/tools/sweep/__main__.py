"""Train a network with every combination of the values of some config keys, and compare the runs.

Commas separate the values of a key. Each combination is trained, one after another, in
OUTPUT_DIR/DATASET.NAME/NAME-KEY=VALUE.../, and tables and a picture of all runs are in OUTPUT_DIR/DATASET.NAME/NAME/.
The same command resumes a sweep that was stopped or killed. It repeats neither finished nor diverged runs. Semicolons
separate lists: SOLVER.LR_MILESTONES "[30,60];[40,80]". In the CSV file, ' precedes text that a spreadsheet would run as
a formula; the JSON file has the exact text.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from isonet.config import flat, read_written_cfg
from isonet.errors import Stopped, UserError, run_cli
from isonet.files.run_folder import run_folder
from isonet.files.storage import FolderLock, check_kind, remove_leftovers, write_file
from isonet.launch import is_launched
from isonet.plots import MISSING, have_matplotlib
from isonet.signals import StopSignals
from isonet.tools.cli import check_gpu_ids, make_parser
from isonet.tools.sweep.processes import CFG_FILE, run_all
from isonet.tools.sweep.runs import PICTURE, Run, make_grid, results_table, write_results
from isonet.training.log import log_to_terminal

log = logging.getLogger("isonet")

EXAMPLES = """\
  python -m isonet.tools.sweep --cfg configs/digits_ISO20.yaml --output coeff ISON.ORTHO_COEFF 1e-5,1e-4,1e-3
  python -m isonet.tools.sweep --cfg configs/cifar10_ISO110.yaml --output both --gpus 0,1 --parallel \\
      ISON.ORTHO_COEFF 1e-5,1e-4,1e-3 SOLVER.BASE_LR 0.01,0.02 SOLVER.MAX_EPOCHS 30"""

_GPUS_HELP = "GPUs of each run, or with --parallel of all runs together (default: all visible GPUs, else the CPU)"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options. ``opts`` contains the keys and their values, alternating."""
    parser = make_parser(__doc__, EXAMPLES, gpus_help=_GPUS_HELP, tool="sweep")
    parser.add_argument("--output", required=True, metavar="NAME", help="the name of the sweep, e.g. --output coeff")
    parser.add_argument(
        "--parallel", action="store_true", help="run one training per GPU in parallel (without GPUs: per id in --gpus)"
    )
    return parser.parse(sys.argv[1:] if argv is None else argv)


def main(args: argparse.Namespace) -> None:
    """Train the runs that are not finished, and report the results of all."""
    log_to_terminal()
    if is_launched():
        raise UserError("a sweep is one process that starts others: start it without torchrun")
    check_gpu_ids(args.gpus)
    runs = make_grid(args.cfg, args.output, args.opts)
    slots = slots_of(args.gpus, args.parallel)
    folder = run_folder(runs[0].cfg, args.output).path
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder):
        train_all(runs, folder, slots)


def slots_of(gpus: str | None, parallel: bool) -> Sequence[str | None]:
    """Return the ``--gpus`` of each of the runs that are trained at the same time."""
    from isonet.training.devices import pick_devices

    devices = pick_devices(gpus)
    if not parallel:
        return [gpus]
    if gpus is not None:
        return gpus.split(",")
    return [None if device.type == "cpu" else str(device.index) for device in devices]


def train_all(runs: Sequence[Run], folder: Path, slots: Sequence[str | None]) -> None:
    """Train the runs that are not finished, and update the files in ``folder`` after each run.

    Raises ``Stopped`` if runs were stopped before their end, and ``UserError`` if a run failed without diverging.
    """
    check_same(runs, folder)
    for run in runs:
        run.update()
    remove_leftovers(folder)
    write_file(folder / CFG_FILE, runs[0].cfg.dump())
    waiting = [run for run in runs if run.state == "waiting"]
    log.info("%d runs, %d of them not finished; the results are in %s", len(runs), len(waiting), folder)
    if not have_matplotlib():
        log.info("%s is not drawn: %s", PICTURE, MISSING)
    write_results(folder, runs)
    with StopSignals() as stop:
        for run in run_all(waiting, slots, folder, stop):
            write_results(folder, runs)
            ended = sum(other.state not in ("waiting", "running") for other in runs)
            log.info("[%d/%d] %s", ended, len(runs), run.as_line())
    log.info("%s", results_table(runs))
    if undone := sum(run.state in ("waiting", "stopped") for run in runs):
        why = f"by {stop.received.name}" if stop.received else "some of the runs were stopped"
        raise Stopped(f"{why}; {undone} runs are not finished, but saved; the same command resumes them")
    if failed := [run for run in runs if run.state == "failed"]:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed; the first: {failed[0].reason}")


def check_same(runs: Sequence[Run], folder: Path) -> None:
    """Raise ``UserError`` if ``folder`` or the folder of a run contains a sweep or a run with another config."""
    kept = [("sweep", folder / CFG_FILE, runs[0].cfg, list(runs[0].values))]
    kept += [("run", run.folder.config, run.cfg, []) for run in runs]
    for kind, file, cfg, varying in kept:
        check_kind(file)
        if file.exists() and (other := difference(read_written_cfg(file), cfg, varying)):
            raise UserError(f"{file.parent} is a {kind} with {other}: choose another --output")


def difference(before: CfgNode, now: CfgNode, varying: Sequence[str] = ()) -> str:
    """Return the first key in which two runs differ, with both values, or "" if ``now`` may resume a run of ``before``.

    varying: keys to ignore in addition to the keys that may differ on resume.
    """
    from isonet.training.changes import may_differ

    old, new = flat(before), flat(now)
    ignored = may_differ(now) | set(varying)
    return next((f"{key} {old[key]}, now {new[key]}" for key in new if key not in ignored and old[key] != new[key]), "")


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args))
