"""The network of a checkpoint, with its weights: what ``predict``, ``export`` and ``isometry`` start from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from isonet.config import image_size, load_cfg
from isonet.data.build import statistics
from isonet.errors import CheckpointError, UserError, printable
from isonet.files.checkpoint import Checkpoint
from isonet.files.zoo import open_checkpoint
from isonet.models import ISONet, build_model

log = logging.getLogger("isonet")


@dataclass(frozen=True)
class Trained:
    """path: of the checkpoint. model: in evaluation mode, in float32 on the CPU. classes: a name for each output."""

    path: Path
    cfg: CfgNode
    model: ISONet
    classes: list[str]


def load_trained(
    ckpt: str, cfg_path: str | None = None, opts: Sequence[Any] = (), classes_file: str | None = None
) -> Trained:
    """Build the network of a checkpoint and load its weights.

    ckpt: a file, a run folder, the name of a run of the config, or ``zoo:`` and a published checkpoint.
    cfg_path: a config file; None for the config that the checkpoint carries.
    opts: ``KEY VALUE`` pairs, merged on top of the config.
    classes_file: a text file with the name of a class on each line; None for the names in the checkpoint, with the
    numbers of further classes.

    Raises ``UserError`` if any of these is missing or wrong.
    """
    cfg = None if cfg_path is None else load_cfg(cfg_path, opts)
    checkpoint = open_checkpoint(cfg, ckpt)
    if cfg is None:
        cfg = checkpoint.config(opts)
    else:
        warn_of_other_images(checkpoint, cfg)
    model, count = build_model(cfg), cfg.DATASET.NUM_CLASSES
    checkpoint.load_into(model)
    if classes_file is not None:
        classes = read_classes(classes_file, count)
    else:
        classes = checkpoint.classes or []
        if len(classes) > count:
            raise CheckpointError(
                f"{checkpoint.path}: names {len(classes)} classes for a network of {count}; give others by --classes"
            )
        classes = [*classes, *map(str, range(len(classes), count))]
    return Trained(checkpoint.path, cfg, model.eval(), classes)


def warn_of_other_images(checkpoint: Checkpoint, cfg: CfgNode) -> None:
    """Warn if the network of ``checkpoint`` was trained on images of another size or scale than ``cfg`` describes."""
    trained = checkpoint.cfg
    if trained is None:
        return
    pairs = {"size": (image_size(trained), image_size(cfg)), "mean and std": (statistics(trained), statistics(cfg))}
    for what, (before, now) in pairs.items():
        if before != now:
            log.warning("%s was trained on images of %s %s, and is evaluated on %s", checkpoint.path, what, before, now)


def read_classes(file: str, count: int) -> list[str]:
    """The names of ``count`` classes from a text file. Raises ``UserError`` unless each has a line of its own."""
    try:
        names = [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"--classes {printable(file)}: is not text in UTF-8") from None
    if len(names) != count or not all(names):
        empty = f", and line {names.index('') + 1} is empty" if "" in names else ""
        raise UserError(
            f"--classes {printable(file)}: has {len(names)} lines{empty}; it must name each of the {count} classes of "
            "the network (DATASET.NUM_CLASSES) on a line of its own"
        )
    return names
