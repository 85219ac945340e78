"""Fine-tuning: a network that starts with trained weights, and parts of it that keep theirs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from isonet.config import parse_cfg
from isonet.errors import CheckpointError, ConfigError, printable
from isonet.files.checkpoint import load_state
from isonet.files.zoo import open_checkpoint
from isonet.training.world import World

log = logging.getLogger("isonet")

HEAD = "head."  # before the names of what tells classes apart


def start_from(model: nn.Module, cfg: CfgNode, world: World) -> list[str] | None:
    """Give ``model`` the weights that MODEL.INIT_FROM means, on all processes, of which the leading one reads them.

    A head for another number of classes stays as it is. Returns the names of the classes that a head which was
    taken tells apart, if the checkpoint has them. Raises ``CheckpointError`` for a file that cannot be used, and
    weights that do not fit.
    """
    if not cfg.MODEL.INIT_FROM:
        return None
    path, weights, classes = world.from_leader(lambda: _read(cfg))
    own = model.state_dict()
    fresh = [name for name in own if name in weights and _is_head_of_other_classes(name, weights[name], own[name])]
    load_state(model, {**weights, **{name: own[name] for name in fresh}}, path)
    log.info("MODEL.INIT_FROM: %d of %d tensors are those of %s", len(own) - len(fresh), len(own), path)
    for name in fresh:
        log.info("  fresh: %s, %s there and %s here", name, tuple(weights[name].shape), tuple(own[name].shape))
    return None if fresh else classes


def _read(cfg: CfgNode) -> tuple[Path, dict[str, Tensor], list[str] | None]:
    try:
        checkpoint = open_checkpoint(cfg, cfg.MODEL.INIT_FROM)
    except CheckpointError as error:
        raise CheckpointError(f"MODEL.INIT_FROM: {str(error).removeprefix('--ckpt ')}") from None
    return checkpoint.path, checkpoint.weights, checkpoint.classes


def _is_head_of_other_classes(name: str, theirs: Tensor, ours: Tensor) -> bool:
    return name.startswith(HEAD) and theirs.shape != ours.shape and theirs.shape[1:] == ours.shape[1:]


def note_other_classes(before: Sequence[str] | None, now: Sequence[str]) -> None:
    """Warn of a head that was taken although its classes have other names, which ``before`` holds."""
    if before is not None and list(before) != list(now):
        shown = [printable(", ".join(names[:5]))[:100] for names in (before, now)]
        log.warning("the head was trained to tell %s, ... apart, and starts with that on %s, ...", *shown)


def freeze(model: nn.Module, cfg: CfgNode) -> None:
    """Let the parts of ``model`` that MODEL.FREEZE names need no gradient. Raises ``ConfigError`` for others."""
    names: list[str] = cfg.MODEL.FREEZE
    if not names:
        return
    parts = dict(model.named_children())
    if missing := [name for name in names if name not in parts]:
        raise ConfigError(f"MODEL.FREEZE {missing[0]}: the parts of this network are {', '.join(parts)}")
    for name in names:
        parts[name].requires_grad_(False)
    total = sum(p.numel() for p in model.parameters())
    if not (trained := sum(p.numel() for p in model.parameters() if p.requires_grad)):
        raise ConfigError(f"MODEL.FREEZE {', '.join(names)} leaves nothing to train: leave out a part, such as head")
    log.info("MODEL.FREEZE: %s stay as they are, %d of %d parameters are trained", ", ".join(names), trained, total)
    if not cfg.MODEL.INIT_FROM:
        log.warning("MODEL.FREEZE without MODEL.INIT_FROM: these parts keep the weights of their initialisation")


def check_same_parts(state: dict[str, Any], path: Path, cfg: CfgNode) -> None:
    """Refuse to go on with a run with other parts frozen, of whose momentum it knows nothing."""
    if not isinstance(state.get("config"), str):
        return
    before, now = parse_cfg(state["config"], str(path)).MODEL.FREEZE, cfg.MODEL.FREEZE
    if set(before) != set(now):
        raise ConfigError(
            f"{path}: was trained with MODEL.FREEZE {before}, and a run cannot go on with {now}: begin another one, "
            f"with MODEL.INIT_FROM {path} and another --output"
        )


def trained_parts(model: nn.Module) -> nn.Module:
    """``model``, or if parts of it are frozen the others, under their names: what a penalty is to be taken of."""
    parts = {name: part for name, part in model.named_children() if not _is_frozen(part)}
    return nn.ModuleDict(parts) if len(parts) < len(list(model.children())) else model


def train_mode(model: nn.Module) -> None:
    """Training mode, but for frozen parts: batch norm there keeps to the means and variances that it has."""
    model.train()
    for part in model.children():
        if _is_frozen(part):
            part.eval()


def _is_frozen(part: nn.Module) -> bool:
    parameters = list(part.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
