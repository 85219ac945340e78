"""The network of a checkpoint, with its weights: what ``test.py``, ``predict``, ``export``, ``isometry`` start from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from isonet.config import image_size, load_cfg
from isonet.data.build import statistics
from isonet.errors import CheckpointError, UserError
from isonet.files.checkpoint import Checkpoint
from isonet.files.zoo import open_checkpoint
from isonet.models import ISONet, build_model
from isonet.training.distributed import ALONE, World

log = logging.getLogger("isonet")


@dataclass(frozen=True)
class Trained:
    """path, classes, epoch: of the checkpoint. model: in evaluation mode, in float32 on the CPU."""

    path: Path
    cfg: CfgNode
    model: ISONet
    classes: list[str] | None = None
    epoch: int | None = None


def load_trained(ckpt: str, cfg_path: str | None = None, opts: Sequence[Any] = (), world: World = ALONE) -> Trained:
    """Build the network of a checkpoint and load its weights.

    ckpt: a file, a run folder, the name of a run of the config, or ``zoo:`` and a published checkpoint.
    cfg_path: a config file; None for the config that the checkpoint carries.
    opts: ``KEY VALUE`` pairs, merged on top of the config.
    world: the ranks that all load it; only rank 0 reads the file.

    Raises ``UserError`` if any of these is missing or wrong.
    """
    cfg = load_cfg(cfg_path, opts) if cfg_path else None
    checkpoint = world.from_main(lambda: open_checkpoint(cfg, ckpt))
    if cfg is None:
        cfg = checkpoint.config(opts)
    else:
        _warn_of_other_images(checkpoint, cfg)
    model = build_model(cfg)
    checkpoint.load_into(model)
    return Trained(checkpoint.path, cfg, model.eval(), checkpoint.classes, checkpoint.epoch)


def _warn_of_other_images(checkpoint: Checkpoint, cfg: CfgNode) -> None:
    """Warn if the network of ``checkpoint`` was trained on images of another size or scale than ``cfg`` describes."""
    before = checkpoint.cfg
    for name, read in (("size", image_size), ("mean and std", statistics)):
        if before is not None and read(before) != read(cfg):
            message = "%s was trained on images of %s %s, and is evaluated on %s"
            log.warning(message, checkpoint.path, name, read(before), read(cfg))


def class_names(trained: Trained, file: str | None = None) -> list[str]:
    """Return a name for each output of the network.

    file: a text file with the name of a class on each line; None for the names in the checkpoint, with the numbers of
    further classes. Raises ``UserError`` for names of another number of classes.
    """
    count = trained.cfg.DATASET.NUM_CLASSES
    if file is None:
        names = trained.classes or []
        if len(names) > count:
            raise CheckpointError(
                f"{trained.path}: names {len(names)} classes for a network of {count}; give others by --classes"
            )
        return [*names, *map(str, range(len(names), count))]
    try:
        names = [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"--classes {file}: is not text in UTF-8") from None
    if len(names) != count or not all(names):
        empty = f", and line {names.index('') + 1} is empty" if "" in names else ""
        raise UserError(
            f"--classes {file}: has {len(names)} lines{empty}; it must name each of the {count} classes of the network "
            "(DATASET.NUM_CLASSES) on a line of its own"
        )
    return names
