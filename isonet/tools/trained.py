"""A trained network out of a checkpoint: what the tools that use one begin with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from isonet.checkpoint import load_state, weights_of
from isonet.config import image_size, load_cfg, parse_cfg
from isonet.data.build import statistics
from isonet.errors import CheckpointError, UserError, printable
from isonet.models import ISONet, build_model
from isonet.zoo import open_checkpoint

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
    path, state = open_checkpoint(cfg, ckpt)
    if cfg is None:
        cfg = own_config(state, path, opts)
    else:
        warn_of_other_images(state, path, cfg)
    model = build_model(cfg)
    load_state(model, weights_of(state, path), path)
    count = cfg.DATASET.NUM_CLASSES
    classes = _numbered(classes_of(state), count, path) if classes_file is None else _read_names(classes_file, count)
    return Trained(path, cfg, model.eval(), classes)


def own_config(state: dict[str, Any], path: Path, opts: Sequence[Any]) -> CfgNode:
    """The config that a checkpoint carries, with ``opts`` merged on top."""
    if not isinstance(state.get("config"), str):
        raise CheckpointError(f"{path}: carries no config; name the one it was trained with by --cfg")
    return parse_cfg(state["config"], f"{path} (its config)", opts)


def warn_of_other_images(state: dict[str, Any], path: Path, cfg: CfgNode) -> None:
    """The network would run on images of another size or scale, and only be worse."""
    if not isinstance(state.get("config"), str):
        return
    trained = parse_cfg(state["config"], f"{path} (its config)")
    pairs = {"size": (image_size(trained), image_size(cfg)), "mean and std": (statistics(trained), statistics(cfg))}
    for what, (before, now) in pairs.items():
        if before != now:
            log.warning("%s was trained on images of %s %s, and is evaluated on %s", path, what, before, now)


def classes_of(state: dict[str, Any]) -> list[str] | None:
    """The names of the classes, in the order of labels, if the checkpoint tells."""
    classes = state.get("classes")
    return classes if isinstance(classes, list) and all(isinstance(name, str) for name in classes) else None


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
