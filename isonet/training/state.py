"""What a checkpoint of a run holds beside the weights, so that ``--resume`` gives the run that would have been."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from isonet.data import Loader
from isonet.errors import CheckpointError
from isonet.files.checkpoint import fitted, weights_of
from isonet.training.amp import Amp


@dataclass
class Part:
    """The beginning of an epoch that was interrupted."""

    taken: int  # images of its order that its steps have taken
    sums: dict[str, Any]  # state of its EpochSums


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0  # finished epochs
    best_top1: float = -1.0  # percent
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)  # one row of metrics per finished epoch
    timing: list[dict[str, float]] = field(default_factory=list)  # likewise, of seconds
    part: Part | None = None  # of the epoch after those

    def __str__(self) -> str:
        steps = self.part.sums["steps"] if self.part else 0
        return f"epoch {self.epoch + 1}, step {steps}" if steps else f"epoch {self.epoch}"

    def record(self, row: dict[str, float], timing: dict[str, float]) -> bool:
        """Add the rows of a finished epoch; returns whether it is the best so far."""
        self.epoch, self.part = int(row["epoch"]), None
        self.history.append(row)
        self.timing.append(timing)
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
    loader: Loader,
    num_gpus: int,
    accumulate: int,
) -> dict[str, Any]:
    """A checkpoint: tensors, numbers and text only, so that it loads without running code.

    accumulate: SOLVER.ACCUMULATE as the user asked for it, which ``cfg`` may have adapted to the number of GPUs.
    """
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": amp.scaler.state_dict(),  # empty without fp16
        "epoch": progress.epoch,
        "best_top1": progress.best_top1,
        "best_epoch": progress.best_epoch,
        "history": progress.history,
        "timing": progress.timing,
        "part": asdict(progress.part) if progress.part else None,
        "num_devices": num_gpus,
        "accumulate": accumulate,
        "config": cfg.dump(),
        "classes": list(loader.classes),
        "num_images": loader.num_images,
    }


def restore_state(
    state: dict[str, Any],
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    amp: Amp,
    loader: Loader,
) -> Progress:
    """Put model and optimiser where the run that wrote ``state``, read from ``path``, left them.

    The optimiser keeps the settings of its groups, which are the config's, and takes on the momentum.
    Raises ``CheckpointError``, with the model unchanged, for a state that does not fit.
    """
    wanted = ("model", "optimizer", "epoch", "best_top1", "best_epoch", "history")
    if missing := [key for key in wanted if key not in state]:
        raise CheckpointError(f"{path}: cannot be resumed, it lacks {', '.join(missing)}; it may still be evaluated")
    weights = fitted(model, weights_of(state, path), path)
    try:
        progress = _progress(state)
        _check_part(progress.part, loader.num_images)
        optimizer.load_state_dict(_checked_optimizer(state["optimizer"], optimizer))
        if state.get("scaler") and amp.scaler.is_enabled():
            amp.scaler.load_state_dict(_checked_scaler(state["scaler"], amp.scaler.state_dict()))
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path}: its optimiser or metrics do not fit this run ({error})") from None
    model.load_state_dict(weights)  # last, since it cannot fail
    return progress


def _progress(state: dict[str, Any]) -> Progress:
    """The numbers of a checkpoint, each looked at: they come from a file and go into others."""
    part = state.get("part")
    return Progress(
        epoch=_count(state["epoch"]),
        best_top1=_finite(state["best_top1"]),
        best_epoch=_count(state["best_epoch"]),
        history=[_row(row) for row in state["history"]],
        timing=[_row(row) for row in state.get("timing", [])],
        part=Part(_count(part["taken"]), _sums(part["sums"])) if part else None,
    )


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError("where a number of epochs, steps or images is expected, it holds something else")
    return value


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("where a number is expected, it holds something else")
    return value


def _row(row: dict[str, float]) -> dict[str, float]:
    if not all(isinstance(key, str) for key in row):
        raise TypeError("a row of metrics has other keys than text")
    return {key: _finite(value) for key, value in row.items()}


def _sums(state: dict[str, Any]) -> dict[str, Any]:
    """The state of an ``EpochSums``."""
    cross_entropy, penalty = state["losses"]
    top1, top5 = state["correct"]
    return {
        "losses": [_finite(cross_entropy), _finite(penalty)],
        "correct": [_count(top1), _count(top5)],
        **{key: _count(state[key]) for key in ("images", "steps")},
        **{key: _finite(state[key]) for key in ("seconds", "waited")},
    }


def _check_part(part: Part | None, num_images: int) -> None:
    if part and not (part.taken <= num_images and part.sums["steps"] and part.sums["images"]):
        raise ValueError(f"saved after {part.taken} images of an epoch of {num_images}; is this the same data set?")


def _checked_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The momentum of ``state``, after a look at what ``load_state_dict`` takes as it is, with our own settings.

    Each buffer gets the memory layout of its parameter, which fused optimisers need.
    """
    groups = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in state["param_groups"]] != [group["params"] for group in groups]:
        raise ValueError("other groups of parameters")
    buffers = {index: values["momentum_buffer"] for index, values in state["state"].items()}
    if all(buffer is None for buffer in buffers.values()):  # SOLVER.MOMENTUM 0, or no step yet
        return {"state": {}, "param_groups": groups}
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    if set(buffers) != set(parameters):
        raise ValueError("the momentum of other parameters")
    checked = {}
    for index, parameter in parameters.items():
        buffer = buffers[index]
        if buffer.shape != parameter.shape or not buffer.isfinite().all():
            raise ValueError(f"momentum number {index} is of another shape, or not finite")
        checked[index] = {"momentum_buffer": torch.empty_like(parameter).copy_(buffer)}
    return {"state": checked, "param_groups": groups}


def _checked_scaler(state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The scale that fp16 has found, with our own settings."""
    scale = _finite(state["scale"])
    if not scale > 0:
        raise ValueError("the scale of fp16 is not above 0")
    return {**own, "scale": scale, "_growth_tracker": _count(state["_growth_tracker"])}
