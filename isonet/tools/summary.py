"""The figures of a run, read from the files of its folder, and tables of several runs."""

import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isonet.errors import printable
from isonet.files.run_folder import RunFolder
from isonet.plots import Row


@dataclass(frozen=True)
class Summary:
    """The figures of a run. A figure that the run's files do not give is None. Accuracies are in percent."""

    epochs: int = 0
    best_top1: float | None = None
    best_epoch: int | None = None
    last_top1: float | None = None
    cross_entropy: float | None = None  # training, last epoch
    penalty: float | None = None  # training, last epoch
    images_per_second: float | None = None  # median of the epochs
    seconds: float | None = None  # sum over all epochs, training and validation
    validation_images: int | None = None


def read_rows(file: Path) -> tuple[list[Row], int]:
    """Return the rows of ``metrics.jsonl`` or ``timing.jsonl`` in the order of epochs, and the number of invalid lines.

    A killed run may leave an incomplete line at the end. If an epoch has two rows, the later row counts.
    """
    rows = [_row(line) for line in file.read_bytes().splitlines()]
    by_epoch = {row["epoch"]: row for row in rows if row}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)], rows.count(None)


def _row(line: bytes) -> Row | None:
    """Return the numbers of a line, or None if it is invalid."""
    try:
        found = json.loads(line)
        if type(found["epoch"]) is not int or not 0 < found["epoch"] < 2**53:
            return None
        values = {str(key): float(value) for key, value in found.items() if type(value) in (int, float)}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None
    return values if all(map(math.isfinite, values.values())) else None


def summary_of(folder: RunFolder) -> Summary:
    """Return the summary of the run in ``folder``. All values are None or 0 if the folder has no run."""
    rows, timing = (read_rows(file)[0] if file.is_file() else [] for file in (folder.metrics, folder.timing))
    best = max((row for row in rows if "top1" in row), key=lambda row: row["top1"], default=None)
    speeds = [row["images_per_second"] for row in timing if "images_per_second" in row]
    last: Row = rows[-1] if rows else {}
    return Summary(
        epochs=int(last.get("epoch", 0)),
        best_top1=best["top1"] if best else None,
        best_epoch=int(best["epoch"]) if best else None,
        last_top1=last.get("top1"),
        cross_entropy=last.get("cross_entropy"),
        penalty=last.get("penalty"),
        images_per_second=statistics.median(speeds) if speeds else None,
        seconds=sum(row.get("seconds", 0.0) for row in timing) if timing else None,
        validation_images=validation_images(folder),
    )


def validation_images(folder: RunFolder) -> int | None:
    """Return the number of validation images in the log of the run's last start, or None if it is not there."""
    numbers = re.findall(r"(\d+) images for validation", _log(folder))
    return int(numbers[-1]) or None if numbers else None


def _log(folder: RunFolder) -> str:
    return folder.log.read_text("utf-8", "replace") if folder.log.is_file() else ""


def divergence(folder: RunFolder) -> str:
    """Return the message of the ``NonFiniteError`` that ended the run, from the last line of its log, or ""."""
    lines = _log(folder).splitlines()
    return lines[-1].partition(" NonFiniteError: ")[2] if lines else ""


COLUMNS = ("epochs", "best top-1 (epoch)", "last top-1", "cross entropy", "penalty", "images/s", "seconds")


def cells(summary: Summary) -> list[str]:
    """Return the figures as text, one for each of ``COLUMNS``."""
    best = "-" if summary.best_top1 is None else f"{summary.best_top1:.2f} ({summary.best_epoch})"
    figures = [
        (summary.last_top1, ".2f"), (summary.cross_entropy, ".4f"), (summary.penalty, ".4g"),
        (summary.images_per_second, ".0f"), (summary.seconds, ".0f"),
    ]  # fmt: skip
    return [str(summary.epochs), best, *("-" if value is None else format(value, form) for value, form in figures)]


def text_table(header: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """Lines of aligned columns: the first ``left`` and columns without header to the left, others to the right."""
    lines = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<" if number < left or not name else ">" for number, name in enumerate(header)]
    line = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return "\n".join(line.format(*row).rstrip() for row in lines)
