"""What a resumed run may change, and what makes it another run than the one that was interrupted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from isonet.config import flat, global_batch, parse_cfg
from isonet.config.keys import BEFORE_THE_KEY
from isonet.data import Loader
from isonet.errors import CheckpointError

log = logging.getLogger("isonet")

# Keys that a resumed run may change without becoming another run
MAY_DIFFER = {
    "OUTPUT_DIR", "DATASET.ROOT", "DATASET.DOWNLOAD", "DATASET.NUM_WORKERS", "DATASET.ON_ERROR", "RUNTIME.LOG_EVERY",
    "RUNTIME.LOG_SPECTRUM", "RUNTIME.PROFILE", "RUNTIME.SAVE_EVERY", "RUNTIME.CHECKPOINT_ACTIVATIONS",
    "RUNTIME.TENSORBOARD", "RUNTIME.KEEP", "SOLVER.MAX_EPOCHS",
}  # fmt: skip


def may_differ(cfg: CfgNode) -> set[str]:
    """Keys of ``cfg`` that may have had other values before: ``MAY_DIFFER``, but for what the schedule goes by."""
    return MAY_DIFFER - ({"SOLVER.MAX_EPOCHS"} if cfg.SOLVER.SCHEDULE != "steps" else set())  # when the rate reaches 0


def keep_global_batch(state: dict[str, Any], path: Path, cfg: CfgNode, num_gpus: int) -> CfgNode:
    """``cfg`` for going on from ``state`` with another number of GPUs: with its global batch, where that can be.

    SOLVER.ACCUMULATE makes up for the GPUs that there are fewer of, unless the user has changed it. In ``state``
    its config has what the run did, and "accumulate" what the user had asked for.
    """
    then, gpus_then = _config(state, path), state.get("num_devices")
    if then is None or type(gpus_then) is not int:
        return cfg
    accumulate, rest = divmod(gpus_then * then.SOLVER.ACCUMULATE, num_gpus)
    asked = {**then.SOLVER, "ACCUMULATE": state.get("accumulate", then.SOLVER.ACCUMULATE)}
    if rest or any(asked[key] != cfg.SOLVER[key] for key in ("ACCUMULATE", "TRAIN_BATCH_SIZE")):
        return cfg
    if accumulate == cfg.SOLVER.ACCUMULATE:
        return cfg
    images = global_batch(then, gpus_then)
    log.info(
        "%d GPUs before, %d now: SOLVER.ACCUMULATE %d keeps the global batch of %d images, and the rate",
        gpus_then, num_gpus, accumulate, images,
    )  # fmt: skip
    return _with_solver_key(cfg, "ACCUMULATE", accumulate)


def keep_drop_last(state: dict[str, Any], path: Path, cfg: CfgNode) -> CfgNode:
    """``cfg`` for resuming from ``state``, with the SOLVER.DROP_LAST that its run began with.

    The key decides how many steps an epoch has and on which images, so a run keeps it to its end, whatever ``cfg``
    says. The checkpoints of the resumed run store the value that is used, so the next resume finds it again. A
    ``state`` without a config, or with one that lacks the key, is older than the key.
    """
    then = _config(state, path)
    began: bool = then.SOLVER.DROP_LAST if then else BEFORE_THE_KEY["SOLVER.DROP_LAST"]
    if began == cfg.SOLVER.DROP_LAST:
        return cfg
    log.warning(
        "SOLVER.DROP_LAST %s is not used: the run of %s began with %s and keeps it to its end; to change it, start a "
        "new run",
        cfg.SOLVER.DROP_LAST, path, began,
    )  # fmt: skip
    return _with_solver_key(cfg, "DROP_LAST", began)


def _with_solver_key(cfg: CfgNode, key: str, value: Any) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER[key] = value
    cfg.freeze()
    return cfg


def changes(state: dict[str, Any], path: Path, cfg: CfgNode, loader: Loader, num_gpus: int) -> Iterator[str]:
    """What makes the run from here on another than the one that wrote ``state``, as ``KEY old -> new``."""
    if then := _config(state, path):
        before, now = flat(then), flat(cfg)
        ignored, gpus_then = may_differ(cfg), state.get("num_devices")
        if type(gpus_then) is int and gpus_then > 0:
            ignored.add("SOLVER.ACCUMULATE")  # with the number of GPUs it makes the global batch, which is told instead
            yield from _other_batch(then, gpus_then, cfg, num_gpus)
        yield from (f"{k} {before[k]} -> {now[k]}" for k in now if k not in ignored and before[k] != now[k])
    if type(state.get("num_images")) is int and state["num_images"] != loader.num_images:
        yield f"the number of training images {state['num_images']} -> {loader.num_images}"
    if state.get("layout") and state.get("part"):
        raise CheckpointError(
            f"{path}: was saved within an epoch of shards in their former order, which no longer exists; resume from a "
            "checkpoint of a whole epoch"
        )


def _other_batch(then: CfgNode, gpus_then: int, cfg: CfgNode, num_gpus: int) -> Iterator[str]:
    """The global batch, where it differs, of what, and what that does to the rate."""
    images = global_batch(then, gpus_then), global_batch(cfg, num_gpus)
    if images[0] == images[1]:
        return
    factors = [
        f"{gpus} GPU{'s' if gpus > 1 else ''} x {c.SOLVER.TRAIN_BATCH_SIZE} x SOLVER.ACCUMULATE {c.SOLVER.ACCUMULATE}"
        for c, gpus in ((then, gpus_then), (cfg, num_gpus))
    ]
    rates = [c.SOLVER.BASE_LR * c.SOLVER.ACCUMULATE * gpus for c, gpus in ((then, gpus_then), (cfg, num_gpus))]
    yield (
        f"the global batch {images[0]} -> {images[1]} images ({factors[0]} -> {factors[1]}), "
        f"and with it the rate {rates[0]:g} -> {rates[1]:g}"
    )


def _config(state: dict[str, Any], path: Path) -> CfgNode | None:
    return parse_cfg(state["config"], str(path)) if isinstance(state.get("config"), str) else None
