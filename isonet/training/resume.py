"""Which checkpoint a run goes on from, and what its folder must look like then."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from isonet.checkpoint import read_checkpoint
from isonet.errors import CheckpointError
from isonet.run_folder import RunFolder
from isonet.storage import write_file
from isonet.training.state import Progress

log = logging.getLogger("isonet")

LATEST = ""  # the value of --resume without a checkpoint


def checkpoint_to_resume(folder: RunFolder, resume: str | None, overwrite: bool) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, if any, and what it holds: of the ones that ``resume`` means, the newest whole one.

    Raises ``CheckpointError`` where there is none, and rather than touch a run that is already there unasked.
    """
    if resume is not None and overwrite:
        raise CheckpointError("--resume goes on with a run and --overwrite removes it: give one of them")
    if resume is None:
        if folder.holds_a_run() and not overwrite:
            go_on = "go on with it with --resume, " if any(folder.resumable()) else "which had saved nothing yet: "
            raise CheckpointError(
                f"{folder.path} already holds a run: {go_on}replace it with --overwrite, or choose another --output"
            )
        return None
    asked = Path(resume)
    if resume == LATEST or asked.is_dir():
        source = folder if resume == LATEST else RunFolder(asked)
        candidates, missing = list(source.resumable()), source.latest
    else:
        source = RunFolder(asked.parent)
        candidates, missing = [asked] if asked.is_file() else [], asked
    if not candidates:
        how = "--overwrite starts afresh" if folder.holds_a_run() else "leave --resume out to start the run"
        raise CheckpointError(f"{missing}: no checkpoint to resume; {how}")
    is_own = resume == LATEST or source.path.resolve() == folder.path.resolve()
    if folder.holds_a_run() and not (is_own and candidates[0].resolve() == next(folder.resumable()).resolve()):
        raise CheckpointError(
            f"{folder.path} holds a run that {candidates[0]} is not the latest of: "
            "choose another --output to resume it into"
        )
    return _newest_whole(candidates)


def _newest_whole(candidates: list[Path]) -> tuple[Path, dict[str, Any]]:
    """The first that can be read, and what it holds; the ones before it are named."""
    damaged: dict[Path, CheckpointError] = {}
    for path in candidates:
        if any(path.samefile(other) for other in damaged):  # latest.pt is another name of one of the others
            continue
        try:
            state = read_checkpoint(path)
        except CheckpointError as error:
            damaged[path] = error
            continue
        for why in damaged.values():
            log.warning("%s; using the one before it, %s", why, path)
        return path, state
    others = f", and neither is another one in {candidates[0].parent}" if len(damaged) > 1 else ""
    raise CheckpointError(f"{next(iter(damaged.values()))}{others}; choose an earlier checkpoint or start afresh")


def take_over(folder: RunFolder, path: Path, progress: Progress) -> None:
    """Bring ``folder`` to where the resumed checkpoint at ``path`` was: its metrics, its best, nothing beyond it."""
    # A run that was killed may have logged more, or less, than it saved
    write_file(folder.metrics, _as_lines(progress.history))
    write_file(folder.timing, _as_lines(progress.timing))
    if path.parent.resolve() == folder.path.resolve():
        for other in folder.resumable():
            if other.samefile(path):
                break
            folder.set_aside(other)
    elif _epoch_of(best := RunFolder(path.parent).best) == progress.best_epoch:
        shutil.copyfile(best, folder.best)
    if _epoch_of(folder.best) != progress.best_epoch:  # the next epoch is the best there is
        progress.best_top1, progress.best_epoch = -1.0, 0


def _as_lines(rows: list[dict[str, float]]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _epoch_of(best: Path) -> int | None:
    """The epoch of a best checkpoint; None where there is none that can be read."""
    try:
        return read_checkpoint(best).get("epoch") if best.exists() else None
    except CheckpointError as error:
        log.warning("%s; the best of the epochs from here on will replace it", error)
        return None
