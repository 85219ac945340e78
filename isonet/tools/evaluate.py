"""Evaluate a checkpoint: what ``test.py`` does."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isonet.config import load_cfg
from isonet.data import build_loader
from isonet.data.processes import explain_dead_workers
from isonet.errors import NonFiniteError, UserError
from isonet.files.storage import write_file
from isonet.files.zoo import open_checkpoint
from isonet.models import build_model
from isonet.tools.trained import warn_of_other_images
from isonet.training import Evaluation, evaluate
from isonet.training.amp import Amp
from isonet.training.devices import describe, explain_out_of_memory, place, set_precision
from isonet.training.evaluate import list_skipped
from isonet.training.fetch import fetch
from isonet.training.lockstep import Lockstep
from isonet.training.peers import explain_lost_peers, processes

log = logging.getLogger("isonet")


def evaluate_checkpoint(
    ckpt: str, cfg_path: str | None = None, gpus: str | None = None, opts: Sequence[Any] = ()
) -> tuple[Evaluation, Path]:
    """Accuracy of a checkpoint on the validation images of its config's data set, and the file it came from.

    ckpt: a file, a run folder, the name of a run of the config, or ``zoo:`` and a published checkpoint.
    cfg_path: a config file; None: the config that the checkpoint carries.
    Raises ``UserError`` for everything that the user can put right.
    """
    cfg = load_cfg(cfg_path, opts) if cfg_path else None
    with (
        processes(gpus) as (world, devices),
        explain_lost_peers(world),
        explain_dead_workers(),
        explain_out_of_memory(),
    ):
        checkpoint = world.from_leader(lambda: open_checkpoint(cfg, ckpt))
        if cfg is None:
            cfg = checkpoint.config(opts)
        else:
            warn_of_other_images(checkpoint, cfg)
        set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
        model = build_model(cfg)
        checkpoint.load_into(model)
        fetch(cfg, world)
        note = f" (epoch {checkpoint.epoch})" if checkpoint.epoch is not None else ""
        loader = build_loader(cfg, "val", devices, checkpoint.classes, world.share)
        log.info("evaluating %s%s on %s", checkpoint.path, note, describe(devices, world.size))
        forward = place(model, devices, cfg.RUNTIME.CHANNELS_LAST, cfg.RUNTIME.COMPILE)
        batches = Lockstep(loader, world)
        found = evaluate(forward, batches, devices[0], Amp(cfg.RUNTIME.AMP, devices[0]), world)
        for skipped in world.gather(dict(loader.skipped)):
            loader.skipped.update(skipped)
    if world.leads:
        list_skipped({"val": loader})
    if not math.isfinite(found.loss):
        raise NonFiniteError(f"{checkpoint.path}: the network's output is not finite, so its accuracy means nothing")
    return found, checkpoint.path


def check_writable(json_file: str | None) -> None:
    """Say before an evaluation, not after it, that there is no folder for ``json_file``."""
    if json_file and not os.path.isdir(os.path.dirname(json_file) or "."):
        raise UserError(f"--json {json_file}: there is no such folder; make it first")


def report(result: Evaluation, path: Path, json_file: str | None = None) -> None:
    """Print the figures and, where asked, write them as JSON."""
    log.info("%d images, %.0f images/s", result.images, result.images_per_second)
    log.info("top-1 %.2f %%, top-5 %.2f %%, loss %.4f: %s", result.top1, result.top5, result.loss, path)
    if json_file:
        write_file(Path(json_file), json.dumps(result.as_dict(), indent=2) + "\n")
