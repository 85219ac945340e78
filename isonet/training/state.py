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
from isonet.training.amp import Amp

# Keys that a resumed run may change without becoming another run
_MAY_DIFFER = {
    "OUTPUT_DIR", "DATASET.ROOT", "DATASET.DOWNLOAD", "DATASET.NUM_WORKERS", "RUNTIME.LOG_EVERY", "RUNTIME.PROFILE",
    "SOLVER.MAX_EPOCHS",
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
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    amp: Amp,
    progress: Progress,
    cfg: CfgNode,
    classes: Sequence[str],
    devices: Sequence[torch.device],
) -> dict[str, Any]:
    """A checkpoint: tensors, numbers and text only, so that it loads without running code."""
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": amp.scaler.state_dict(),  # empty without fp16
        "epoch": progress.epoch,
        "best_top1": progress.best_top1,
        "best_epoch": progress.best_epoch,
        "history": progress.history,
        "random": _random_state(devices),
        "num_devices": len(devices),
        "config": cfg.dump(),
        "classes": list(classes),
    }


def restore_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, amp: Amp, devices: Sequence[torch.device]
) -> Progress:
    """Put model, optimiser and random streams where the run that wrote ``path`` left them.

    The optimiser keeps the settings of its groups, which are the config's, and takes on the momentum.
    """
    state = read_checkpoint(path)
    wanted = ("model", "optimizer", "epoch", "best_top1", "best_epoch", "history", "random")
    if missing := [key for key in wanted if key not in state]:
        raise CheckpointError(f"{path}: cannot be resumed, it lacks {', '.join(missing)}; it may still be evaluated")
    load_state(model, weights_of(state, path), path)
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            amp.scaler.load_state_dict(state["scaler"])
        _set_random_state(state["random"], devices)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its optimiser or random state does not fit this run ({error})") from None
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    return Progress(state["epoch"], state["best_top1"], state["best_epoch"], list(state["history"]))


def changes(path: Path, cfg: CfgNode, devices: Sequence[torch.device]) -> list[str]:
    """What makes the run from here on another than the one that wrote ``path``, as ``KEY old -> new``."""
    state = read_checkpoint(path)
    found = []
    if isinstance(state.get("config"), str):
        before, now = flat(parse_cfg(state["config"], str(path))), flat(cfg)
        found = [f"{k} {before[k]} -> {now[k]}" for k in now if k not in _MAY_DIFFER and before[k] != now[k]]
    if state.get("num_devices", len(devices)) != len(devices):
        found.append(f"the number of GPUs, and with it batch and rate, {state['num_devices']} -> {len(devices)}")
    return found


def _random_state(devices: Sequence[torch.device]) -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"],
    }


def _set_random_state(state: dict[str, Any], devices: Sequence[torch.device]) -> None:
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    on_gpu = [device for device in devices if device.type == "cuda"]
    for device, device_state in zip(on_gpu, state["cuda"], strict=False):  # by position; another number is warned of
        torch.cuda.set_rng_state(device_state, device)
