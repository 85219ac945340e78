"""Evaluate a checkpoint: what ``test.py`` does."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from isonet.config import load_cfg
from isonet.data import build_loader
from isonet.errors import NonFiniteError
from isonet.files.storage import write_file
from isonet.files.zoo import open_checkpoint
from isonet.models import build_model
from isonet.tools.trained import warn_of_other_images
from isonet.training.devices import describe, place, set_precision
from isonet.training.distributed import World, lockstep
from isonet.training.failure import explained, ranks
from isonet.training.log import list_skipped
from isonet.training.metrics import Evaluation, evaluate
from isonet.training.optim import Amp
from isonet.training.run import download

log = logging.getLogger("isonet")


def evaluate_checkpoint(
    ckpt: str, cfg_path: str | None = None, gpus: str | None = None, opts: Sequence[Any] = ()
) -> tuple[Evaluation, Path]:
    """Evaluate a checkpoint on the validation images of its data set; returns the figures and the checkpoint's file.

    ckpt: a file, a run folder, the name of a run of the config, or ``zoo:`` and a published checkpoint.
    cfg_path: a config file; None for the config that the checkpoint carries.
    gpus: as ``--gpus``; opts: ``KEY VALUE`` pairs, merged on top of the config.

    Raises ``UserError`` if the checkpoint, the config or the data set is missing or wrong, and ``NonFiniteError`` if
    the output of the network is not finite.
    """
    with ranks(gpus) as (world, devices):
        return evaluate_on_ranks(ckpt, cfg_path, world, devices, opts)


def evaluate_on_ranks(
    ckpt: str, cfg_path: str | None, world: World, devices: list[torch.device], opts: Sequence[Any] = ()
) -> tuple[Evaluation, Path]:
    """``evaluate_checkpoint`` on connected ranks. devices: those of this rank."""
    cfg = load_cfg(cfg_path, opts) if cfg_path else None
    with explained(world):
        checkpoint = world.from_main(lambda: open_checkpoint(cfg, ckpt))
        if cfg is None:
            cfg = checkpoint.config(opts)
        else:
            warn_of_other_images(checkpoint, cfg)
        set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
        model = build_model(cfg)
        checkpoint.load_into(model)
        download(cfg, world)
        loader = build_loader(cfg, "val", devices, checkpoint.classes, world.share)
        epoch = "" if checkpoint.epoch is None else f" (epoch {checkpoint.epoch})"
        log.info("evaluating %s%s on %s", checkpoint.path, epoch, describe(devices, world.size))
        forward = place(model, devices, cfg.RUNTIME.CHANNELS_LAST, cfg.RUNTIME.COMPILE)
        result = evaluate(forward, lockstep(loader, world), devices[0], Amp(cfg.RUNTIME.AMP, devices[0]), world)
        for skipped in world.gather(dict(loader.skipped)):
            loader.skipped.update(skipped)
    if world.is_main:
        list_skipped({"val": loader})
    if not math.isfinite(result.loss):
        raise NonFiniteError(f"{checkpoint.path}: the output of the network is non-finite, so it has no accuracy")
    return result, checkpoint.path


def report(result: Evaluation, path: Path, json_file: str | None = None) -> None:
    """Print the figures and, if ``json_file`` is given, write them as JSON."""
    log.info("%d images, %.0f images/s", result.images, result.images_per_second)
    log.info("top-1 %.2f %%, top-5 %.2f %%, loss %.4f: %s", result.top1, result.top5, result.loss, path)
    if json_file:
        write_file(Path(json_file), json.dumps(result.as_dict(), indent=2) + "\n")
