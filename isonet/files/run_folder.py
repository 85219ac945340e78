"""The folder of a run, ``OUTPUT_DIR/DATASET.NAME/<output>/``, and its files. This module does not import torch."""

import os
import re
from difflib import get_close_matches
from pathlib import Path

from yacs.config import CfgNode

from isonet.config.file import where
from isonet.errors import CheckpointError, ConfigError
from isonet.files.storage import link_file, write_file
from isonet.published import PREFIX, published_as

LATEST = ""  # the value of --resume without a checkpoint
AUTO = "auto"  # the value of --resume that resumes this run if it has saved anything, or else starts it

_NUMBERED = re.compile(r"epoch(\d+)(?:-step(\d+))?\.pt")


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
        return list(self.path.glob("events.out.tfevents.*"))

    def numbered(self) -> list[Path]:
        """Return ``epoch0003.pt`` (after epoch 3), ``epoch0004-step000120.pt`` (within epoch 4) and so on, in order."""
        matches = {file: _NUMBERED.fullmatch(file.name) for file in self.path.glob("epoch*.pt")}
        # A name without a step: after the whole epoch
        positions = {file: (int(match[1]), float(match[2] or "inf")) for file, match in matches.items() if match}
        return sorted(positions, key=lambda file: positions[file])

    def resumable(self) -> list[Path]:
        """Return the checkpoints to resume from, newest first. ``latest`` replaces its other name if it has one."""
        newest_first = self.numbered()[::-1]
        if not self.latest.is_file():
            return newest_first
        if newest_first and self.latest.samefile(newest_first[0]):
            return [self.latest, *newest_first[1:]]
        return [*newest_first, self.latest]  # a kill prevented its update, or the folder is a copy

    def save(self, content: bytes, epoch: int, step: int, keep: int, best: bool = False) -> None:
        """Save a checkpoint of ``epoch`` after ``step`` (0: after the epoch) as the latest, and keep the last ``keep``.

        best: whether ``best`` becomes another name of it. ``latest`` and ``best`` are always complete files. Raises
        ``StorageError``, with both intact, if nothing can be written.
        """
        path = self.path / (f"epoch{epoch:04}-step{step:06}.pt" if step else f"epoch{epoch:04}.pt")
        write_file(path, content)
        if best:  # first, so that the latest never names a best epoch whose file is missing
            link_file(path, self.best)
        link_file(path, self.latest)
        for old in self.numbered()[:-keep]:
            old.unlink(missing_ok=True)

    def set_aside(self, damaged: Path) -> None:
        """Rename a damaged checkpoint so that no run resumes from it."""
        damaged.replace(damaged.with_name(damaged.name + ".damaged"))

    def set_log_aside(self) -> None:
        """Rename the log of a start that saved nothing, so that the next start does not overwrite it."""
        if self.log.exists():
            self.log.replace(self.log.with_name("log-before-restart.txt"))

    def holds_a_run(self) -> bool:
        return any(file.exists() for file in self._files())

    def clear(self) -> None:
        """Remove the files of the run, and nothing else."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        named = [file for name, file in vars(self).items() if name != "path"]
        return named + self.events() + self.numbered() + list(self.path.glob("*.pt.damaged"))


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
        raise CheckpointError(f"--resume {resume:.200}: no such checkpoint, and no run folder with one{hint}")
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
    """Return a checkpoint or a run in the folder ``path``, or one of a similar name beside ``path``."""
    folder = path if os.path.isdir(path) else path.parent
    if not os.path.isdir(folder):
        return None
    inside = sorted([*folder.glob("*.pt"), *(file.parent for file in folder.glob("*/best.pt"))])
    names = [file.name for file in inside]
    near = names if folder is path else get_close_matches(path.name[:255], names, n=1)
    return folder / near[0] if near else None
