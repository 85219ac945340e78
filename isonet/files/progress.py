"""The progress of a run: the entries of its checkpoints beside weights and optimizer, checked when they are read."""

from __future__ import annotations

import functools
import math
import pickletools
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_NO_VALUE = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")  # opcodes between a key and its value


@dataclass
class Part:
    """The steps already done in an interrupted epoch.

    taken: the number of images in these steps, on all ranks. sums: the sums of ``EpochSums`` over these steps.
    """

    taken: int
    sums: dict[str, Any]


@dataclass
class Progress:
    """The progress of a run.

    epoch: the number of finished epochs. history, timing: a row of metrics, and of times in seconds, for each of them.
    best_top1: the highest top-1 accuracy, in percent, which is that of epoch best_epoch. part: the steps already done
    in the next epoch, or None.
    """

    epoch: int = 0
    best_top1: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    timing: list[dict[str, float]] = field(default_factory=list)
    part: Part | None = None

    def __str__(self) -> str:
        steps = self.part.sums["steps"] if self.part else 0
        return f"epoch {self.epoch + 1}, step {steps}" if steps else f"epoch {self.epoch}"

    @property
    def last_penalty(self) -> float | None:
        """The penalty in the latest sums (their mean) or metrics, or None at the start of a run."""
        if self.part:
            return self.part.sums["losses"][1] / self.part.sums["steps"]
        return self.history[-1]["penalty"] if self.history else None

    def record(self, row: dict[str, float], timing: dict[str, float]) -> bool:
        """Add the rows of a finished epoch, and return whether it is the best so far."""
        self.epoch, self.part = int(row["epoch"]), None
        self.history.append(row)
        self.timing.append(timing)
        improved = row["top1"] > self.best_top1
        if improved:
            self.best_top1, self.best_epoch = row["top1"], self.epoch
        return improved

    def as_dict(self) -> dict[str, Any]:
        """Return the entries of a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any], num_images: int) -> Progress:
        """Read the entries of a checkpoint. Raises ``ValueError`` or a similar error for an invalid entry.

        num_images: the number of training images, the upper limit of ``Part.taken``.
        """
        return cls(
            epoch=count(state["epoch"]),
            best_top1=finite(state["best_top1"]),
            best_epoch=count(state["best_epoch"]),
            history=_rows(state["history"]),
            timing=_rows(state.get("timing", [])),
            part=_part(state["part"], num_images) if state.get("part") else None,
        )


def is_saved_at(path: Path, epoch: int, step: int) -> bool:
    """Return whether the checkpoint at ``path`` was saved in ``epoch`` after ``step`` (0: after the epoch).

    Returns True for a damaged file. Reads only the opcodes of the pickle, and creates no tensor and no other object.
    """
    status = path.stat()
    return _saved_at(path, status.st_ino, status.st_mtime_ns) in (None, (epoch, step))


@functools.lru_cache(maxsize=256)
def _saved_at(path: Path, _inode: int, _modified: int) -> tuple[int, int] | None:
    """Return the first ``epoch`` and ``steps`` in the pickle of a checkpoint, or None."""
    found: dict[str, int] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = (entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
            if entry.compress_type != zipfile.ZIP_STORED:  # torch never compresses
                return None
            pickled = archive.read(entry)
        key: Any = None
        for opcode, value, _ in pickletools.genops(pickled):
            if opcode.name in _NO_VALUE:
                continue
            if key in ("epoch", "steps") and type(value) is int:
                found.setdefault(key, value)
            key = value
    except Exception:  # zipfile and pickletools raise nearly every kind of exception for a damaged file
        return None
    step = found.get("steps", 0)
    return found.get("epoch", -1) + bool(step), step


def count(value: Any) -> int:
    """Return ``value`` if it is a number of epochs, steps or images. Raises ``ValueError`` otherwise."""
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError("an entry that must be a number of epochs, steps or images is something else")
    return value


def finite(value: Any) -> float:
    """Return ``value`` if it is a finite number. Raises ``ValueError`` otherwise."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("an entry that must be a finite number is something else")
    return value


def _rows(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    if not all(isinstance(key, str) for row in rows for key in row):
        raise TypeError("a row of metrics has keys that are not text")
    return [{key: finite(value) for key, value in row.items()} for row in rows]


def _part(part: dict[str, Any], num_images: int) -> Part:
    taken, state = count(part["taken"]), part["sums"]
    (cross_entropy, penalty), (top1, top5) = state["losses"], state["correct"]
    sums = {
        "losses": [finite(cross_entropy), finite(penalty)],
        "correct": [count(top1), count(top5)],
        **{key: count(state[key]) for key in ("images", "steps")},
        **{key: finite(state[key]) for key in ("seconds", "waited")},
    }
    if not (taken <= num_images and sums["steps"] and sums["images"]):
        raise ValueError(f"saved after {taken} images of an epoch of {num_images}; is this the same data set?")
    return Part(taken, sums)
