"""What a run left, as one JSON file of results/: its command, its config, versions, and a row of figures an epoch."""

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
RESULTS = REPO / "results"


@dataclass(frozen=True)
class Stored:
    """metrics, timing: a row an epoch, from 1, as in the run's ``metrics.jsonl`` and ``timing.jsonl``.

    diverged: what the trainer said where the numbers were no longer finite; the rows are those before. Empty: finite.
    """

    command: str
    config: str
    versions: dict[str, Any]
    metrics: list[dict[str, float]]
    timing: list[dict[str, float]]
    diverged: str = ""

    @property
    def top1(self) -> float:
        """After the last epoch, in percent: not the best epoch's, which would be chosen by the validation images.

        nan where the run diverged.
        """
        return math.nan if self.diverged else self.metrics[-1]["top1"]


def collect(command: str, folder: RunFolder) -> Stored:
    """A finished run as it lies in its folder."""
    versions = json.loads(folder.versions.read_text(encoding="utf-8"))
    kept = {**machine(), "commit": versions["commit"]}  # with the threads, which the result depends on in its last bits
    metrics, timing = (read_rows(file)[0] if file.exists() else [] for file in (folder.metrics, folder.timing))
    return Stored(command, folder.config.read_text(encoding="utf-8"), kept, metrics, timing, divergence(folder.log))


def divergence(log: Path) -> str:
    """What the last line of a run's log says, if the run ended because its numbers were not finite; else empty."""
    last = log.read_text(encoding="utf-8").rstrip().rpartition("\n")[2] if log.exists() else ""
    found = re.fullmatch(r".*? NonFiniteError: (.*?);.*", last)
    return found[1] if found else ""


def write(name: str, stored: Stored) -> Path:
    """Write ``results/<name>.json``, a line for each epoch."""
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
    """The stored run of this name; None where it was not made yet."""
    file = RESULTS / f"{name}.json"
    return Stored(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
