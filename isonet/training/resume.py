"""Which checkpoint a run goes on from, and what its folder must look like then."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from isonet.errors import CheckpointError
from isonet.files.checkpoint import read_checkpoint
from isonet.files.run_folder import RunFolder
from isonet.files.storage import link_file, write_file
from isonet.training.state import Progress

log = logging.getLogger("isonet")

LATEST = ""  # the value of --resume without a checkpoint
AUTO = "auto"  # of --resume: go on with this run if it has saved anything, else start it


def checkpoint_to_resume(folder: RunFolder, resume: str | None, overwrite: bool) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, if any, and what it holds: of the ones that ``resume`` means, the newest whole one.

    Raises ``CheckpointError`` where there is none, and rather than touch a run that is already there unasked.
    """
    if resume is not None and overwrite:
        raise CheckpointError("--resume goes on with a run and --overwrite removes it: give one of them")
    if resume is None:
        if folder.holds_a_run() and not overwrite:
            run = "a run: go on with it with --resume," if folder.resumable() else "a run that saved nothing:"
            raise CheckpointError(
                f"{folder.path} already holds {run} replace it with --overwrite, or choose another --output"
            )
        return None
    source, candidates = _candidates(folder, resume)
    if not candidates and resume == AUTO:
        return None
    if not candidates:
        if resume != LATEST:
            raise CheckpointError(f"--resume {resume}: no checkpoint to resume, and no run folder with one, is there")
        how = "--overwrite starts afresh" if folder.holds_a_run() else "leave --resume out to start the run"
        raise CheckpointError(f"{folder.path}: no checkpoint to resume is there yet; {how}")
    own = folder.resumable()
    goes_on = source.path.resolve() == folder.path.resolve() and own and own[0].samefile(candidates[0])
    if folder.holds_a_run() and not goes_on:
        raise CheckpointError(
            f"{folder.path} holds a run already, and {candidates[0]} is not its latest checkpoint: choose another "
            "--output to resume that into, or go on with the run that is there by --resume alone"
        )
    return _newest_whole(candidates)


def _candidates(folder: RunFolder, resume: str) -> tuple[RunFolder, list[Path]]:
    """The folder that ``resume`` is about, and what to go on from there, the newest first."""
    asked = Path(resume)
    try:
        if resume in (LATEST, AUTO) or asked.is_dir():
            source = folder if resume in (LATEST, AUTO) else RunFolder(asked)
            return source, source.resumable()
        return RunFolder(asked.parent), [asked] if asked.is_file() else []
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--resume {resume!r:.100}: cannot be looked for ({error!s:.100})") from None


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
    others = f", and so are the {len(damaged) - 1} before it" if len(damaged) > 1 else ""
    raise CheckpointError(f"{next(iter(damaged.values()))}{others}; start afresh, or from another checkpoint")


def take_over(folder: RunFolder, path: Path, progress: Progress) -> None:
    """Bring ``folder`` to where the resumed checkpoint at ``path`` was: its metrics, its best, nothing beyond it."""
    # A run that was killed may have logged more, or less, than it saved
    write_file(folder.metrics, _as_lines(progress.history))
    write_file(folder.timing, _as_lines(progress.timing))
    if path.parent.resolve() == folder.path.resolve():
        _repair(folder, path, progress)
    else:
        if _epoch_of(best := RunFolder(path.parent).best) == progress.best_epoch:
            write_file(folder.best, best.read_bytes())
        write_file(folder.latest, path.read_bytes())  # so that --resume goes on even if nothing is saved after this
    if _epoch_of(folder.best) != progress.best_epoch:  # the next epoch is the best there is
        progress.best_top1, progress.best_epoch = -1.0, 0


def _repair(folder: RunFolder, path: Path, progress: Progress) -> None:
    """Let ``path`` be the newest checkpoint, and the best where it is and a kill came before that was written."""
    for newer in folder.numbered()[::-1]:  # damaged: else they would be counted among those that are kept
        if newer.samefile(path):
            break
        folder.set_aside(newer)
    if not (folder.latest.exists() and folder.latest.samefile(path)):
        log.warning("%s was not the newest checkpoint that is whole: it is %s from here on", folder.latest, path)
        link_file(path, folder.latest)
    if progress.best_epoch == progress.epoch and not progress.part and _epoch_of(folder.best) != progress.epoch:
        link_file(path, folder.best)


def _as_lines(rows: list[dict[str, float]]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _epoch_of(best: Path) -> int | None:
    """The epoch of a best checkpoint; None where there is none that can be read."""
    try:
        return read_checkpoint(best).get("epoch") if best.exists() else None
    except CheckpointError as error:
        log.warning("%s; the best of the epochs from here on will replace it", error)
        return None
