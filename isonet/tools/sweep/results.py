"""What a sweep has found: a state and figures for each run, as JSON, as CSV and as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from isonet.config import flat
from isonet.errors import UserError, printable
from isonet.files.storage import write_file
from isonet.plots.sweep import Point
from isonet.tools.summary import COLUMNS, Summary, cells, summary_of, text_table
from isonet.tools.sweep.grid import Grid, Run, leaf, shown
from isonet.training.changes import may_differ

FAILED = ("diverged", "failed")
_LONGEST_REASON = 100  # characters in the table; the files have all of it


@dataclass
class Result:
    """state: waiting, running, stopped, finished, diverged or failed; reason: why, in one line."""

    run: Run
    state: str = "waiting"
    reason: str = ""
    summary: Summary = field(default_factory=Summary)

    def update(self) -> None:
        """Read what the run has come to. It is finished where its last epoch is, whatever the sweep knew of it."""
        self.summary = summary_of(self.run.folder)
        if self.summary.epochs >= self.run.cfg.SOLVER.MAX_EPOCHS:
            self.state, self.reason = "finished", ""

    @property
    def point(self) -> Point:
        """What the picture shows of it."""
        failed, top1 = self.state in FAILED, (self.summary.best_top1, self.summary.last_top1)
        return Point(self.run.values, *((None, None) if failed else top1), self.state, failed)

    def as_dict(self) -> dict[str, Any]:
        run = {"run": self.run.name, "values": self.run.values, "state": self.state}
        return {**run, **asdict(self.summary), "reason": self.reason}


@dataclass(frozen=True)
class Files:
    """What a sweep leaves in a folder of its own, beside those of its runs."""

    path: Path

    @property
    def cfg(self) -> Path:
        """What the runs have in common: the config of the first of them."""
        return self.path / "sweep.yaml"

    @property
    def json(self) -> Path:
        return self.path / "sweep.json"

    @property
    def csv(self) -> Path:
        return self.path / "sweep.csv"

    @property
    def picture(self) -> Path:
        return self.path / "sweep.png"

    def output(self, run: Run) -> Path:
        """What the process of a run prints."""
        return self.path / f"{run.name}.txt"


def ranked(results: Sequence[Result]) -> list[Result]:
    """The best top-1 first; after them those that failed, and last those that have no figures yet."""
    return sorted(results, key=lambda result: (result.state in FAILED, -_top1(result)))


def _top1(result: Result) -> float:
    return -1.0 if result.summary.best_top1 is None else result.summary.best_top1


def write_results(files: Files, grid: Grid, results: Sequence[Result]) -> None:
    """Write ``sweep.json`` and ``sweep.csv``, the best run first."""
    rows = [result.as_dict() for result in ranked(results)]
    write_file(files.json, json.dumps({"keys": grid.keys, "runs": rows}, indent=1, allow_nan=False) + "\n")
    text = io.StringIO()
    columns = [key for key in rows[0] if key not in ("values", "reason")]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([columns[0], *grid.keys, *columns[1:], "reason"])
    for row in rows:
        values = [shown(row["values"][key]) for key in grid.keys]
        writer.writerow([row["run"], *values, *(row[key] for key in columns[1:]), row["reason"]])
    write_file(files.csv, text.getvalue())


def read_results(files: Files, grid: Grid) -> list[Result]:
    """A result for each run of the grid: what its files say, and what the sweep wrote down before.

    A run that diverged would do so again. Raises ``UserError`` for a sweep of other keys.
    """
    states = _former_states(files, grid)
    results = []
    for run in grid.runs:
        result = Result(run)
        state, reason = states.get(run.name, ("waiting", ""))
        if state == "diverged" and run.folder.log.exists():
            result.state, result.reason = state, reason
        result.update()
        results.append(result)
    return results


def difference(before: CfgNode, now: CfgNode, varying: Sequence[str] = ()) -> str:
    """The first key that makes a run of ``now`` another than one of ``before``, with both values; empty: none."""
    old, new, ignored = flat(before), flat(now), may_differ(now)
    different = (key for key in new if key not in ignored and key not in varying and old[key] != new[key])
    key = next(different, None)
    return f"{key} {old[key]}, now it is {new[key]}" if key else ""


def _former_states(files: Files, grid: Grid) -> dict[str, tuple[str, str]]:
    """State and reason of each run, by name, as the sweep wrote them down."""
    if not files.json.exists():
        return {}
    try:
        found = json.loads(files.json.read_text(encoding="utf-8"))
        keys = [str(key) for key in found["keys"]]
        states = {str(row["run"]): (str(row["state"]), str(row["reason"])) for row in found["runs"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = printable(error)[:100]
        raise UserError(f"{files.json}: cannot be read ({why}); remove it, or choose another --output") from None
    if keys != grid.keys:
        raise UserError(f"{files.path} is a sweep of {printable(', '.join(keys))[:200]}: choose another --output")
    return states


def results_table(grid: Grid, results: Sequence[Result]) -> str:
    """A line for each run, the best first, with why it failed."""
    lines = []
    for result in ranked(results):
        values = [shown(value) for value in result.run.values.values()]
        reason = printable(result.reason)
        short = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
        lines.append([*values, result.state, *cells(result.summary), short])
    return text_table([*map(leaf, grid.keys), "state", *COLUMNS, ""], lines, left=len(grid.keys) + 1)
