"""The results of a sweep: a state and figures for each run, as JSON, as CSV and as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from isonet.config import flat
from isonet.errors import UserError, printable
from isonet.files.storage import write_file
from isonet.plots.runs import Point
from isonet.tools.summary import COLUMNS, Summary, cells, summary_of, text_table
from isonet.tools.sweep.grid import Run, leaf, shown

CFG_FILE, JSON_FILE, CSV_FILE = "sweep.yaml", "sweep.json", "sweep.csv"  # the first: the config of the first run
FAILED = ("diverged", "failed")

_LONGEST_REASON = 100  # characters in the table; the files have all of it


@dataclass
class Result:
    """state: waiting, running, stopped, finished, diverged or failed. reason: why, in one line."""

    run: Run
    state: str = "waiting"
    reason: str = ""
    summary: Summary = field(default_factory=Summary)

    def update(self, state: str, reason: str) -> None:
        """Read the figures of the run, and set its state: finished if its last epoch is there, else ``state``."""
        self.summary = summary_of(self.run.folder)
        finished = self.summary.epochs >= self.run.cfg.SOLVER.MAX_EPOCHS
        self.state, self.reason = ("finished", "") if finished else (state, reason)

    @property
    def point(self) -> Point:
        """The run in the picture of the sweep."""
        failed, top1 = self.state in FAILED, (self.summary.best_top1, self.summary.last_top1)
        return Point(self.run.values, *((None, None) if failed else top1), self.state, failed)

    def as_dict(self) -> dict[str, Any]:
        run = {"run": self.run.name, "values": self.run.values, "state": self.state}
        return {**run, **asdict(self.summary), "reason": self.reason}

    def as_line(self) -> str:
        """The result of a run that has ended: why it did not finish, or its figures."""
        figures = ", ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, cells(self.summary), strict=True))
        return f"{self.state}: {printable(self.reason) or figures}"


def ranked(results: Sequence[Result]) -> list[Result]:
    """The highest best top-1 first, then runs without figures, and at the end those that diverged or failed."""

    def place(result: Result) -> tuple[bool, float]:
        top1 = result.summary.best_top1
        return result.state in FAILED, 1.0 if top1 is None else -top1

    return sorted(results, key=place)


def write_results(folder: Path, results: Sequence[Result]) -> None:
    """Write the JSON and the CSV file, the best run first."""
    keys = list(results[0].run.values)
    rows = [result.as_dict() for result in ranked(results)]
    write_file(folder / JSON_FILE, json.dumps({"keys": keys, "runs": rows}, indent=1, allow_nan=False) + "\n")
    columns = ["run", *keys, "state", *(each.name for each in fields(Summary)), "reason"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **{key: shown(value) for key, value in row["values"].items()}} for row in rows)
    write_file(folder / CSV_FILE, text.getvalue())


def read_results(folder: Path, runs: Sequence[Run]) -> list[Result]:
    """A result for each run, from the files of the run and those of an earlier sweep in ``folder``.

    A run that diverged would diverge again, so it keeps that state while its log exists. Every other unfinished run
    is waiting. Raises ``UserError`` if the folder belongs to a sweep of other keys.
    """
    diverged = _diverged(folder / JSON_FILE, list(runs[0].values))
    results = [Result(run) for run in runs]
    for result in results:
        reason = diverged.get(result.run.name) if result.run.folder.log.exists() else None
        result.update(*(("waiting", "") if reason is None else ("diverged", reason)))
    return results


def _diverged(file: Path, keys: list[str]) -> dict[str, str]:
    """The runs that diverged in an earlier sweep, by name, with the reason."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        former = [str(key) for key in found["keys"]]
        diverged = {str(row["run"]): str(row["reason"]) for row in found["runs"] if row["state"] == "diverged"}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = printable(error)[:100]
        raise UserError(f"{file}: cannot be read ({why}); remove it, or choose another --output") from None
    if former != keys:
        raise UserError(f"{file.parent} is a sweep of {printable(', '.join(former))[:200]}: choose another --output")
    return diverged


def difference(before: CfgNode, now: CfgNode, varying: Sequence[str] = ()) -> str:
    """The first key in which two runs differ, with both values, or "" if a run of ``before`` may be resumed as ``now``.

    varying: keys to ignore besides those that may differ on resume.
    """
    from isonet.training.changes import may_differ

    old, new = flat(before), flat(now)
    ignored = may_differ(now) | set(varying)
    key = next((key for key in new if key not in ignored and old[key] != new[key]), None)
    return f"{key} {old[key]}, now {new[key]}" if key else ""


def results_table(results: Sequence[Result]) -> str:
    """A line for each run, the best first, with the reason of those that did not finish."""
    keys = list(results[0].run.values)
    lines = []
    for result in ranked(results):
        reason = printable(result.reason)
        short = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
        lines.append([*map(shown, result.run.values.values()), result.state, *cells(result.summary), short])
    return text_table([*map(leaf, keys), "state", *COLUMNS, ""], lines, left=len(keys) + 1)
