"""What a run is made of, built from its config and from the checkpoint that it goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from isonet.data import Loader, build_loader
from isonet.models import build_model
from isonet.training.amp import Amp
from isonet.training.changes import changes, keep_drop_last, keep_global_batch
from isonet.training.devices import place, seed_everything, set_precision
from isonet.training.events import require_tensorboard
from isonet.training.fetch import fetch
from isonet.training.finetune import check_same_parts, freeze, note_other_classes, start_from
from isonet.training.optim import build_optimizer
from isonet.training.state import Progress, restore_state
from isonet.training.world import World


@dataclass
class Parts:
    """cfg: the run's, with the global batch and SOLVER.DROP_LAST of the one that it resumes.

    changes: sentences on what else differs.
    """

    cfg: CfgNode
    model: nn.Module
    forward: nn.Module  # model, or it compiled, or its wrapper over several GPUs
    optimizer: torch.optim.Optimizer
    amp: Amp
    train_loader: Loader
    val_loader: Loader
    progress: Progress
    changes: list[str]


def build_parts(
    cfg: CfgNode, found: tuple[Path, dict[str, Any]] | None, world: World, devices: list[torch.device]
) -> Parts:
    """The parts of a run on ``devices`` of each process of ``world``, in the state ``found``, if there is one.

    Raises ``UserError`` for everything that the config or the checkpoint can have wrong.
    """
    num_gpus = len(devices) * world.size
    if found:
        path, state = found
        cfg = keep_drop_last(state, path, keep_global_batch(state, path, cfg, num_gpus))
    if cfg.RUNTIME.TENSORBOARD and world.leads:
        require_tensorboard()
    set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
    seed_everything(cfg.RUNTIME.SEED)
    if found:
        check_same_parts(found[1], found[0], cfg)
    model = build_model(cfg)
    head_of = None if found else start_from(model, cfg, world)
    freeze(model, cfg)
    # A CUDA graph would let no gradient go before the backward pass has ended
    forward = place(model, devices, cfg.RUNTIME.CHANNELS_LAST, cfg.RUNTIME.COMPILE, replayed=not world.launched)
    fetch(cfg, world)
    train_loader = build_loader(cfg, "train", devices, share=world.share)
    val_loader = build_loader(cfg, "val", devices, train_loader.classes, world.share)
    note_other_classes(head_of, train_loader.classes)
    parts = Parts(
        cfg, model, forward, build_optimizer(model, cfg), Amp(cfg.RUNTIME.AMP, devices[0]),
        train_loader, val_loader, Progress(), [],
    )  # fmt: skip
    if found:
        path, state = found
        parts.progress = restore_state(state, path, model, parts.optimizer, parts.amp, train_loader)
        parts.changes = list(changes(state, path, cfg, train_loader, num_gpus))
    return parts
