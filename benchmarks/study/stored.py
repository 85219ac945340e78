"""A run as one JSON file in results/: its command, config, versions, and a row of metrics per epoch."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from isonet.files.run_folder import RunFolder
from isonet.files.storage import write_file
from isonet.tools.summary import read_rows

REPO = Path(__file__).resolve().parents[2]
WITHOUT_EFFECT = {"DATASET.SHUFFLE_BUFFER"}  # its default has changed since the rows ran, but they read no shards
RESULTS = REPO / "results"


@dataclass(frozen=True)
class Stored:
    """A stored run. ``metrics`` and ``timing`` have one row per epoch, like ``metrics.jsonl`` and ``timing.jsonl``.

    ``diverged`` is the error message if a number became non-finite, and empty otherwise. A diverged run has the rows of
    the epochs before the error.
    """

    command: str
    config: str
    versions: dict[str, Any]
    metrics: list[dict[str, float]]
    timing: list[dict[str, float]]
    diverged: str = ""

    @property
    def top1(self) -> float:
        """Top-1 in percent after the last epoch; NaN if the run diverged.

        The best epoch is not used, because it is selected on the validation images.
        """
        return math.nan if self.diverged else self.metrics[-1]["top1"]


def collect(command: str, folder: RunFolder) -> Stored:
    """Read a finished run from its folder."""
    versions = json.loads(folder.versions.read_text(encoding="utf-8"))
    kept = {**machine(), "commit": versions["commit"]}  # contains the number of threads, which changes the last bits
    metrics, timing = (read_rows(file)[0] if file.exists() else [] for file in (folder.metrics, folder.timing))
    return Stored(command, folder.config.read_text(encoding="utf-8"), kept, metrics, timing, divergence(folder.log))


def divergence(log: Path) -> str:
    """Return the message in the last line of a log if a non-finite number ended the run, otherwise an empty string."""
    last = log.read_text(encoding="utf-8").rstrip().rpartition("\n")[2] if log.exists() else ""
    match = re.fullmatch(r".*? NonFiniteError: ([^;]*).*", last)
    return match[1] if match else ""


def write(name: str, stored: Stored) -> Path:
    """Write ``results/<name>.json`` with one line per epoch, and return its path."""
    head = {"command": stored.command, "config": stored.config, "versions": stored.versions}
    if stored.diverged:
        head["diverged"] = stored.diverged
    parts = [json.dumps(head, indent=1)[:-2]]
    for key, rows in (("metrics", stored.metrics), ("timing", stored.timing)):
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        parts.append(f' "{key}": [\n  {lines}\n ]')
    file = RESULTS / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, ",\n".join(parts) + "\n}\n")
    return file


def read(name: str) -> Stored | None:
    """Return the stored run with this name, or None if there is none."""
    file = RESULTS / f"{name}.json"
    return Stored(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
