"""The runs of a sweep, one for each combination of the values of some keys, and the files with their results.

Commas separate the values of a key. The items of a list, such as SOLVER.LR_MILESTONES, are separated by commas
already, so semicolons separate several lists: "[30,60];[40,80]".
"""

import csv
import io
import itertools
import json
import logging
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from yacs.config import CfgNode

from isonet.config import flat, load_cfg
from isonet.config.keys import KEYS
from isonet.errors import ConfigError
from isonet.files.run_folder import RunFolder, run_folder
from isonet.files.storage import write_file
from isonet.plots import have_matplotlib, short
from isonet.plots.sweep import Point, draw_sweep
from isonet.tools.cli import as_cell
from isonet.tools.summary import COLUMNS, Summary, cells, divergence, summary_of, text_table

log = logging.getLogger("isonet")

MOST_RUNS = 1000  # a larger number is probably a typo
FAILED = ("diverged", "failed")
PICTURE = "sweep.png"

# Where runs and data are stored is the same for all runs, and the path may contain a comma
_ONE_VALUE = ("OUTPUT_DIR", "DATASET.ROOT", "DATASET.NAME")


@dataclass
class Run:
    """One combination of values, and the state of its run.

    values: the values of the keys that vary. opts: every override of the run as ``KEY VALUE`` text. state: waiting,
    running, stopped, finished, diverged or failed. reason: one line on why the run is not finished.
    """

    name: str
    values: dict[str, Any]
    opts: list[str]
    cfg: CfgNode
    folder: RunFolder
    state: str = "waiting"
    reason: str = ""
    summary: Summary = field(default_factory=Summary)

    def update(self, state: str = "waiting", reason: str = "") -> None:
        """Read the figures and the state of the run from its folder.

        state, reason: the values for a run that has neither finished nor diverged. A diverged run would diverge again.
        """
        self.summary = summary_of(self.folder)
        if self.summary.epochs >= self.cfg.SOLVER.MAX_EPOCHS:
            state, reason = "finished", ""
        elif message := divergence(self.folder):
            state, reason = "diverged", message
        self.state, self.reason = state, reason

    @property
    def point(self) -> Point:
        """The run as a point of the picture."""
        failed = self.state in FAILED
        top1 = (None, None) if failed else (self.summary.best_top1, self.summary.last_top1)
        return Point(self.values, *top1, self.state, failed, self.summary.validation_images)

    def as_row(self, values: dict[str, Any]) -> dict[str, Any]:
        """The run with ``values`` as a row of the JSON or of the CSV file."""
        return {"run": self.name, **values, "state": self.state, **asdict(self.summary), "reason": self.reason}

    def as_line(self) -> str:
        """Return a line on a run that has ended: its values, and its figures or the reason why it did not finish."""
        values = ", ".join(f"{leaf(key)} {shown(value)}" for key, value in self.values.items())
        figures = ", ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, cells(self.summary), strict=True))
        return f"{values}: {self.state}: {self.reason or figures}"


def make_grid(cfg_path: str, output: str, opts: Sequence[str]) -> list[Run]:
    """Return every run of a sweep.

    output: the name of the sweep, which begins the name of each run. opts: keys and their values, alternating.
    At least one key must have several values.

    Raises ``ConfigError`` if any run has an invalid config. No run starts before all of them are checked.
    """
    choices = {key: _split(key, text) for key, text in zip(opts[::2], opts[1::2], strict=False)}
    varying = [key for key, texts in choices.items() if len(texts) > 1]
    if not varying or len(opts) % 2:
        load_cfg(cfg_path, opts)  # raises a clearer error for an unknown key or a missing value
        raise ConfigError("no key has several values: separate them by commas, as in ISON.ORTHO_COEFF 1e-5,1e-4")
    if (size := math.prod(map(len, choices.values()))) > MOST_RUNS:
        raise ConfigError(f"a sweep has at most {MOST_RUNS:,} runs, and these values make {size:,}")
    pairs = [
        [item for pair in zip(choices, texts, strict=True) for item in pair]
        for texts in itertools.product(*choices.values())
    ]
    cfgs = [load_cfg(cfg_path, opts) for opts in pairs]
    values = [{key: flat(cfg)[key] for key in varying} for cfg in cfgs]

    def names(written: Callable[[str], str]) -> list[str]:
        return ["-".join([output, *(f"{leaf(key)}={written(shown(of[key]))}" for key in varying)]) for of in values]

    named = names(lambda text: re.sub(r"[^A-Za-z0-9_.+-]", "_", text))
    if len(set(named)) < len(named):  # two values, such as a/b and a_b, have the same name
        named = names(lambda text: quote(text, safe="+"))
    if len(set(named)) < len(named):
        raise ConfigError(f"two runs are called {max(named, key=named.count)}: give each value once")
    return [
        Run(name, of, opts, cfg, run_folder(cfg, name))
        for name, of, opts, cfg in zip(named, values, pairs, cfgs, strict=True)
    ]


def _split(key: str, text: str) -> list[str]:
    """Return the values of a key, as text."""
    if key in _ONE_VALUE:
        return [text]
    has_lists = key in KEYS and isinstance(KEYS[key].default, list)
    return [part.strip() for part in text.split(";" if has_lists else ",")]


def leaf(key: str) -> str:
    """The last part of a key, such as ORTHO_COEFF, or all of the key if two keys have the same last part."""
    name = key.rpartition(".")[2]
    return name if [other.rpartition(".")[2] for other in KEYS].count(name) == 1 else key


def shown(value: Any) -> str:
    """Return a value as text, such as 1e-4, 0.02 or 30_60. Equal values give the same text."""
    if isinstance(value, list):
        return "_".join(map(shown, value)) or "none"
    return short(value + 0.0) if isinstance(value, float) else str(value)  # + 0.0 turns -0.0 into 0.0


def ranked(runs: Sequence[Run]) -> list[Run]:
    """Sort the runs: the highest best top-1 first, then runs without figures, and diverged or failed runs last."""
    return sorted(runs, key=lambda run: (run.state in FAILED, -(run.summary.best_top1 or -1.0)))


def write_results(folder: Path, runs: Sequence[Run]) -> None:
    """Write the JSON and the CSV file, with the best run first, and the picture if matplotlib is installed."""
    keys, best_first = list(runs[0].values), ranked(runs)
    rows = [run.as_row({"values": run.values}) for run in best_first]
    write_file(folder / "sweep.json", json.dumps({"keys": keys, "runs": rows}, indent=1, allow_nan=False) + "\n")
    rows = [run.as_row({key: shown(value) for key, value in run.values.items()}) for run in best_first]
    rows = [{key: as_cell(cell) if isinstance(cell, str) else cell for key, cell in row.items()} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(folder / "sweep.csv", text.getvalue())
    if not have_matplotlib():
        return
    try:
        picture = draw_sweep(keys, [run.point for run in runs])
    except Exception as error:  # the runs do not depend on the library that draws their results
        log.warning("%s is not drawn: %s: %s", PICTURE, type(error).__name__, error)
    else:
        write_file(folder / PICTURE, picture)


def results_table(runs: Sequence[Run]) -> str:
    """Return a line for each run, the best run first, with the reason if a run did not finish."""
    keys = list(runs[0].values)
    lines = [
        [*map(shown, run.values.values()), run.state, *cells(run.summary), textwrap.shorten(run.reason, 100)]
        for run in ranked(runs)
    ]
    return text_table([*map(leaf, keys), "state", *COLUMNS, ""], lines, left=len(keys) + 1)
