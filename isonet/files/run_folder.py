"""The folder of a run, ``OUTPUT_DIR/DATASET.NAME/<output>/``, and its files. This module does not import torch."""

import itertools
import logging
import os
import re
from difflib import get_close_matches
from pathlib import Path

from yacs.config import CfgNode

from isonet.config.file import where
from isonet.errors import CheckpointError, ConfigError
from isonet.files.progress import is_saved_at
from isonet.files.storage import Content, check_kind, link_file, write_file
from isonet.published import PREFIX, published_as

log = logging.getLogger("isonet")

LATEST = ""  # the value of --resume without a checkpoint
AUTO = "auto"  # the value of --resume that resumes this run if it has saved anything, or else starts it

EVENTS = ".isonet"  # the suffix of the run's TensorBoard events, which the user's own events do not have
_NUMBERED = re.compile(r"epoch(\d{4}|[1-9]\d{4,})(?:-step(\d{6}|[1-9]\d{6,}))?\.pt")  # as ``save`` writes them
_FORMER, _MOVING = ".isonet-former", ".isonet-former-moving"  # folders in the folder of a run


class RunFolder:
    """The files of one run, whether they exist or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.latest = path / "latest.pt"  # the newest checkpoint: another name of the last file of ``numbered``
        self.best = path / "best.pt"  # the checkpoint of the epoch with the highest validation top-1
        self.config = path / "config.yaml"  # the value of every key
        self.log = path / "log.txt"
        self.metrics = path / "metrics.jsonl"  # one line per epoch; a repeated run writes equal lines
        self.timing = path / "timing.jsonl"  # one line per epoch with its times
        self.versions = path / "versions.json"  # the versions of the software and hardware that the run used
        self.profile = path / "profile.txt"  # the costliest operators of some steps, with RUNTIME.PROFILE
        self.skipped = path / "skipped.txt"  # images that could not be read, with DATASET.ON_ERROR skip
        self.curves = path / "curves.png"  # the metrics against the epochs, if matplotlib is installed

    def events(self) -> list[Path]:
        """Return the files for TensorBoard, which a run with RUNTIME.TENSORBOARD writes."""
        return list(self.path.glob(f"events.out.tfevents.*{EVENTS}"))

    def numbered(self) -> list[Path]:
        """Return ``epoch0003.pt`` (after epoch 3), ``epoch0004-step000120.pt`` (within epoch 4) and so on, in order.

        Files of ``misnamed`` are not checkpoints of this run.
        """
        return [file for file, is_ours in self._by_name() if is_ours]

    def misnamed(self) -> list[Path]:
        """Return the files that were saved at another epoch or step than their name says."""
        return [file for file, is_ours in self._by_name() if not is_ours]

    def _by_name(self) -> list[tuple[Path, bool]]:
        found = []
        for file in self.path.glob("epoch*.pt"):
            if (match := _NUMBERED.fullmatch(file.name)) and file.is_file():
                epoch, step = int(match[1]), int(match[2] or 0)
                found.append((epoch, step or float("inf"), file, is_saved_at(file, epoch, step)))
        return [(file, is_ours) for *_, file, is_ours in sorted(found)]

    def resumable(self) -> list[Path]:
        """Return the checkpoints to resume from, newest first. ``latest`` replaces its other name if it has one."""
        newest_first = self.numbered()[::-1]
        if not self.latest.is_file():
            return newest_first
        if newest_first and self.latest.samefile(newest_first[0]):
            return [self.latest, *newest_first[1:]]
        return [*newest_first, self.latest]  # a kill prevented its update, or the folder is a copy

    def save(self, content: Content, epoch: int, step: int, keep: int, best: bool = False) -> None:
        """Save a checkpoint of ``epoch`` after ``step`` (0: after the epoch) as the latest, and keep the last ``keep``.

        best: whether ``best`` becomes another name of it. ``latest`` and ``best`` are always complete files. ``save``
        removes the files of ``set_former_aside``. Raises ``StorageError``, with both intact, if nothing can be written.
        """
        path = self.path / (f"epoch{epoch:04}-step{step:06}.pt" if step else f"epoch{epoch:04}.pt")
        if path in self.misnamed():
            others = (path.with_name(f"{path.name}.other{number or ''}") for number in itertools.count())
            path.replace(next(other for other in others if not os.path.lexists(other)))
        write_file(path, content)
        if best:  # first, so that the latest never names a best epoch whose file is missing
            link_file(path, self.best)
        link_file(path, self.latest)
        self._discard_former()
        for old in self.numbered()[:-keep]:
            old.unlink(missing_ok=True)

    def set_aside(self, damaged: Path) -> None:
        """Rename a damaged checkpoint so that no run resumes from it."""
        damaged.replace(damaged.with_name(damaged.name + ".damaged"))

    def set_log_aside(self) -> None:
        """Rename the log of a start that saved nothing, so that the next start does not overwrite it."""
        if self.log.exists():
            self.log.replace(self.log.with_name("log-before-restart.txt"))

    def check(self) -> None:
        """Raise ``StorageError`` if a file that the run needs is a folder, a pipe, a socket or a device."""
        needed = [file for file in self._named() if file != self.curves]  # a run continues without its plot
        check_kind(*needed, *(file for file in self.path.glob("epoch*.pt") if _NUMBERED.fullmatch(file.name)))

    def holds_a_run(self) -> bool:
        return bool(self._files())

    def clear(self) -> None:
        """Remove the files of the run, and nothing else."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def set_former_aside(self) -> None:
        """Move the files of the run, and nothing else, to a subfolder, so that another run can start here.

        The first ``save`` removes them. Until then, ``restore_former`` puts them back. If the run saved nothing, this
        method removes its files.
        """
        if not set(self._files()) - {self.config, self.log, self.versions, self.profile, self.skipped}:
            return self.clear()
        moving = self.path / _MOVING
        moving.mkdir()
        for file in self._files():
            file.replace(moving / file.name)
        moving.replace(self.path / _FORMER)

    def restore_former(self) -> bool:
        """Put the files of ``set_former_aside`` back unless a run has saved since. Return whether files were put back.

        If a process is killed during the call, the next call completes it. The caller holds the lock.
        """
        former, moving = self.path / _FORMER, self.path / _MOVING
        if former.is_dir() and self.resumable():
            self._discard_former()
        elif former.is_dir():
            self.set_log_aside()
            self.clear()
            former.replace(moving)  # from here on, all files in this folder belong to the former run
        if not moving.is_dir():
            return False
        for file in moving.iterdir():
            file.replace(self.path / file.name)
        moving.rmdir()
        log.warning("%s: the run that replaced the former run saved nothing, so the former run is back", self.path)
        return True

    def has_former(self) -> bool:
        """Return whether the folder contains a former run: another run has replaced it and has not saved yet."""
        return (self.path / _FORMER).exists() or (self.path / _MOVING).exists()

    def _discard_former(self) -> None:
        former = self.path / _FORMER
        if former.is_dir():
            RunFolder(former).clear()
            for file in former.iterdir():  # files that the user has added
                file.replace(self.path / file.name)
            former.rmdir()

    def _named(self) -> list[Path]:
        return [file for name, file in vars(self).items() if name != "path"]

    def _files(self) -> list[Path]:
        damaged = [
            f for f in self.path.glob("epoch*.pt.damaged") if _NUMBERED.fullmatch(f.name.removesuffix(".damaged"))
        ]
        files = self._named() + self.events() + self.numbered() + damaged
        return [file for file in files if file.is_symlink() or (file.exists() and not file.is_dir())]


def run_folder(cfg: CfgNode, output: str) -> RunFolder:
    """Return the folder of the run ``output`` of this config, whether it exists or not."""
    one_name = output not in ("", ".", "..") and not set(output) & {"/", "\\"} and output.isprintable()
    if not one_name or len(output.encode()) > 255:  # bytes: the limit of Linux's file systems
        raise ConfigError(f"--output names one folder below OUTPUT_DIR/DATASET.NAME, got {output!r:.100}")
    return RunFolder(Path(cfg.OUTPUT_DIR) / cfg.DATASET.NAME / output)


def checkpoints_to_resume(folder: RunFolder, resume: str | None, overwrite: bool) -> list[Path]:
    """Return the checkpoints that ``--resume`` names, newest first, or none for a new run.

    resume: a checkpoint or a run folder; "" for the latest checkpoint in ``folder``; "auto" for the same if there is
    one; None for a new run. Raises ``CheckpointError`` if there is nothing to resume, or if ``folder`` has a run that
    neither ``resume`` nor ``overwrite`` permits to change.
    """
    if resume is not None and overwrite:
        raise CheckpointError("--resume continues a run and --overwrite removes it: give one of them")
    folder.check()
    own = folder.resumable()
    if resume is None:
        if folder.holds_a_run() and not overwrite:
            run = "a run: continue it with --resume," if own else "a run that saved nothing:"
            raise CheckpointError(
                f"{folder.path} already holds {run} replace it with --overwrite, or choose another --output"
            )
        return []
    if resume in (LATEST, AUTO):
        if not own and resume == LATEST:
            how = "start over with --overwrite" if folder.holds_a_run() else "leave --resume out to start the run"
            raise CheckpointError(f"{folder.path} has no checkpoint to resume from; {how}")
        return own
    named = Path(resume)
    candidates = [named] if os.path.isfile(named) else RunFolder(named).resumable() if os.path.isdir(named) else []
    if not candidates:
        near = _near(named)
        hint = f"; did you mean {near}?" if near else ""
        raise CheckpointError(f"--resume {resume:.200}: no such checkpoint or run folder with a checkpoint{hint}")
    if folder.holds_a_run() and not (own and own[0].samefile(candidates[0])):
        raise CheckpointError(
            f"{folder.path} already holds a run, and {candidates[0]} is not its latest checkpoint: choose another "
            "--output to resume that checkpoint, or continue this run with --resume alone"
        )
    return candidates


def find_checkpoint(cfg: CfgNode | None, ckpt: str) -> Path:
    """Return the file that ``--ckpt`` names: a checkpoint, or the best of a run folder or of a run of ``cfg``."""
    path = Path(ckpt)
    folders = [RunFolder(path)]
    if path.name == ckpt and cfg is not None:
        folders.append(run_folder(cfg, ckpt))
    for file in (path, *(file for folder in folders for file in (folder.best, folder.latest))):
        if os.path.isfile(file):  # unlike Path.is_file, False for a name that is too long
            return file
    places = " nor at ".join(where(folder.path) for folder in folders)
    hint = "" if cfg is not None or path.name != ckpt else "; the name of a run also needs --cfg"
    hint += f"; did you mean {near}?" if (near := _near(path)) else ""
    if name := published_as(ckpt):
        hint += f"; {PREFIX}{name} downloads the authors' checkpoint, see MODEL_ZOO.md"
    raise CheckpointError(
        f"no checkpoint {where(ckpt)}: neither a file nor a folder with best.pt or latest.pt is at {places}{hint}"
    )


def _near(path: Path) -> Path | None:
    """Return a checkpoint or a run in the folder ``path``, or one with a name similar to ``path``."""
    folder = path if os.path.isdir(path) else path.parent
    if not os.path.isdir(folder):
        return None
    inside = sorted([*folder.glob("*.pt"), *(file.parent for file in folder.glob("*/best.pt"))])
    names = [file.name for file in inside]
    near = names if folder is path else get_close_matches(path.name[:255], names, n=1)
    return folder / near[0] if near else None
