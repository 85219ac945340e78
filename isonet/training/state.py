"""What a checkpoint of a run holds beside the weights, so that ``--resume`` gives the run that would have been."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from isonet.checkpoint import load_state, read_checkpoint, weights_of
from isonet.config import flat, parse_cfg
from isonet.errors import CheckpointError

# Keys that a resumed run may change without becoming another run
_MAY_DIFFER = {
    "OUTPUT_DIR", "DATASET.ROOT", "DATASET.DOWNLOAD", "DATASET.NUM_WORKERS", "RUNTIME.LOG_EVERY", "SOLVER.MAX_EPOCHS",
}  # fmt: skip


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0  # finished epochs
    best_top1: float = -1.0  # percent
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)  # one row per finished epoch

    def record(self, row: dict[str, float]) -> bool:
        """Add the row of a finished epoch; returns whether it is the best so far."""
        self.epoch = int(row["epoch"])
        self.history.append(row)
        improved = row["top1"] > self.best_top1
        if improved:
            self.best_top1, self.best_epoch = row["top1"], self.epoch
        return improved


def pack_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, cfg: CfgNode, classes: Sequence[str]
) -> dict[str, Any]:
    """A checkpoint: tensors, numbers and text only, so that it loads without running code."""
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": progress.epoch,
        "best_top1": progress.best_top1,
        "best_epoch": progress.best_epoch,
        "history": progress.history,
        "random": _random_state(),
        "config": cfg.dump(),
        "classes": list(classes),
    }


def restore_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put model, optimiser and random streams where the run that wrote ``path`` left them."""
    state = read_checkpoint(path)
    wanted = ("model", "optimizer", "epoch", "best_top1", "best_epoch", "history", "random")
    if missing := [key for key in wanted if key not in state]:
        raise CheckpointError(f"{path}: cannot be resumed, it lacks {', '.join(missing)}; it may still be evaluated")
    load_state(model, weights_of(state, path), path)
    try:
        optimizer.load_state_dict(state["optimizer"])
        _set_random_state(state["random"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its optimiser or random state does not fit this run ({error})") from None
    return Progress(state["epoch"], state["best_top1"], state["best_epoch"], list(state["history"]))


def changed_keys(path: Path, cfg: CfgNode) -> list[str]:
    """The config keys whose values differ between the run that wrote ``path`` and ``cfg``, as ``KEY old -> new``."""
    state = read_checkpoint(path)
    if not isinstance(state.get("config"), str):
        return []
    before, now = flat(parse_cfg(state["config"], str(path))), flat(cfg)
    return [f"{key} {before[key]} -> {now[key]}" for key in now if key not in _MAY_DIFFER and before[key] != now[key]]


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state, device)
