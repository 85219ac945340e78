"""A trained network out of a checkpoint: what the tools that use one begin with."""

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
    """model: in evaluation mode, in float32 on the CPU. classes: a name for each of its outputs."""

    path: Path
    cfg: CfgNode
    model: ISONet
    classes: list[str]


def load_trained(
    ckpt: str, cfg_path: str | None = None, opts: Sequence[Any] = (), classes_file: str | None = None
) -> Trained:
    """The network of a checkpoint.

    ckpt: a file, a run folder, the name of a run of the config, or ``zoo:`` and a published checkpoint.
    cfg_path: None for the config that the checkpoint carries. classes_file: names of the classes, one a line;
    None for those of the checkpoint, and the numbers of classes that it does not name. Raises ``UserError`` for
    everything that the user can put right.
    """
    cfg = None if cfg_path is None else load_cfg(cfg_path, opts)
    checkpoint = open_checkpoint(cfg, ckpt)
    if cfg is None:
        cfg = checkpoint.config(opts)
    else:
        warn_of_other_images(checkpoint, cfg)
    model, path = build_model(cfg), checkpoint.path
    checkpoint.load_into(model)
    count = cfg.DATASET.NUM_CLASSES
    classes = _numbered(checkpoint.classes, count, path) if classes_file is None else _read_names(classes_file, count)
    return Trained(path, cfg, model.eval(), classes)


def warn_of_other_images(checkpoint: Checkpoint, cfg: CfgNode) -> None:
    """Warn if the network of ``checkpoint`` was trained on images of another size or scale than ``cfg`` describes."""
    trained = checkpoint.cfg
    if trained is None:
        return
    pairs = {"size": (image_size(trained), image_size(cfg)), "mean and std": (statistics(trained), statistics(cfg))}
    for what, (before, now) in pairs.items():
        if before != now:
            log.warning("%s was trained on images of %s %s, and is evaluated on %s", checkpoint.path, what, before, now)


def _numbered(names: list[str] | None, count: int, path: Path) -> list[str]:
    """``names``, and the number of each class that has none: a network may have more outputs than its data classes."""
    names = names or []
    if len(names) > count:
        raise CheckpointError(f"{path}: names {len(names)} classes for a network of {count}; give others by --classes")
    return [*names, *map(str, range(len(names), count))]


def _read_names(file: str, count: int) -> list[str]:
    try:
        names = [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"--classes {printable(file)}: is no text in UTF-8") from None
    if len(names) != count or not all(names):
        empty = f", of which line {names.index('') + 1} is empty" if "" in names else ""
        raise UserError(
            f"--classes {printable(file)}: holds {len(names)} lines{empty}, and must name each of the {count} "
            "classes of the network (DATASET.NUM_CLASSES) on a line of its own"
        )
    return names
