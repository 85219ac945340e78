"""Evaluate a checkpoint: what ``test.py`` does."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from isonet.data import build_loader
from isonet.errors import NonFiniteError
from isonet.files.storage import write_file
from isonet.tools.trained import load_trained
from isonet.training.devices import describe, place, set_precision
from isonet.training.distributed import World, lockstep
from isonet.training.failure import explained
from isonet.training.log import list_skipped
from isonet.training.metrics import Evaluation, evaluate
from isonet.training.optim import Amp
from isonet.training.run import download

log = logging.getLogger("isonet")


def evaluate_on_ranks(
    ckpt: str, cfg_path: str | None, world: World, devices: list[torch.device], opts: Sequence[Any] = ()
) -> tuple[Evaluation, Path]:
    """Evaluate a checkpoint on the validation images of its data set; returns the figures and the checkpoint's file.

    ckpt, cfg_path, opts: see ``load_trained``. world: the connected ranks. devices: those of this rank.

    Raises ``UserError`` if the checkpoint, the config or the data set is missing or wrong, and ``NonFiniteError`` if
    the output of the network is non-finite.
    """
    with explained(world):
        trained = load_trained(ckpt, cfg_path, opts, world)
        cfg = trained.cfg
        set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
        download(cfg, world)
        loader = build_loader(cfg, "val", devices, trained.classes, world.share)
        epoch = "" if trained.epoch is None else f" (epoch {trained.epoch})"
        log.info("evaluating %s%s on %s", trained.path, epoch, describe(devices, world.size))
        forward = place(trained.model, devices, cfg.RUNTIME.CHANNELS_LAST, cfg.RUNTIME.COMPILE)
        result = evaluate(forward, lockstep(loader, world), devices[0], Amp(cfg.RUNTIME.AMP, devices[0]), world)
        for skipped in world.gather(dict(loader.skipped)):
            loader.skipped.update(skipped)
    if world.is_main:
        list_skipped({"val": loader})
    if not math.isfinite(result.loss):
        raise NonFiniteError(f"{trained.path}: the output of the network is non-finite, so it has no accuracy")
    return result, trained.path


def report(result: Evaluation, path: Path, json_file: str | None = None) -> None:
    """Print the figures and, if ``json_file`` is given, write them as JSON."""
    log.info("%d images, %.0f images/s", result.images, result.images_per_second)
    log.info("top-1 %.2f %%, top-5 %.2f %%, loss %.4f: %s", result.top1, result.top5, result.loss, path)
    if json_file:
        write_file(Path(json_file), json.dumps(result.as_dict(), indent=2) + "\n")
