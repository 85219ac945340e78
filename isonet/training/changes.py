"""The settings that a resumed run keeps, the settings that it may change, and a list of all other changes."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from yacs.config import CfgNode

from isonet.classes import composed, in_order, shortened, wordnet_ids
from isonet.config import flat, global_batch
from isonet.config.keys import BEFORE_THE_KEY, MAY_DIFFER
from isonet.config.kinds import AUTO
from isonet.errors import CheckpointError, ConfigError, printable
from isonet.files.checkpoint import Checkpoint

log = logging.getLogger("isonet")


def may_differ(cfg: CfgNode) -> set[str]:
    """Return the keys that a resumed run may change: ``MAY_DIFFER`` and unused keys, less those the schedule needs."""
    ends_at_zero = {"SOLVER.MAX_EPOCHS"} if cfg.SOLVER.SCHEDULE != "steps" else set()
    unused = {"DATASET.SHUFFLE_BUFFER"} if cfg.RUNTIME.INPUT != "shards" else set()
    return (set(MAY_DIFFER) | unused) - ends_at_zero


def resumed_cfg(checkpoint: Checkpoint, cfg: CfgNode, num_gpus: int) -> CfgNode:
    """Return ``cfg`` for resuming ``checkpoint`` on ``num_gpus`` GPUs.

    The run keeps its global batch, its SOLVER.DROP_LAST and, if ``cfg`` says auto, its RUNTIME.CHANNELS_LAST.
    """
    then = checkpoint.cfg
    if then and set(then.MODEL.FREEZE) != set(cfg.MODEL.FREEZE):  # the optimizer has no momentum for other parts
        raise ConfigError(
            f"{checkpoint.path} was trained with MODEL.FREEZE {then.MODEL.FREEZE}, and cannot be resumed with "
            f"{cfg.MODEL.FREEZE}: start another run, with MODEL.INIT_FROM {checkpoint.path} and another --output"
        )
    cfg = _with_drop_last(checkpoint, _with_global_batch(checkpoint, cfg, num_gpus))
    if then and cfg.RUNTIME.CHANNELS_LAST == AUTO:
        cfg = _with_key(cfg, "RUNTIME.CHANNELS_LAST", then.RUNTIME.CHANNELS_LAST)
    return cfg


def resumed_classes(checkpoint: Checkpoint, names: Sequence[str]) -> Sequence[str]:
    """Return the classes of ``checkpoint``, in the order of the labels of the resumed run.

    names: the classes of the data set in its order. The checkpoint may have another order if a former version sorted
    the names, or if MODEL.INIT_FROM loaded a head with that order. Raises ``CheckpointError`` for any other difference.
    """
    then = checkpoint.classes
    if not then:
        return names
    before, now = [composed(name) for name in then], [composed(name) for name in names]
    gone, new = (sorted((Counter(a) - Counter(b)).elements()) for a, b in ((before, now), (now, before)))
    tuned = checkpoint.cfg is not None and bool(checkpoint.cfg.MODEL.INIT_FROM)
    if not new and not gone and (before == now or tuned or then in (sorted(then), in_order(then))):
        return then
    if not new and tuned and len(then) == len(wordnet_ids()):  # the data set has some classes of ImageNet
        return then
    parts = {"lacks": gone, "adds": new}
    why = " and ".join(f"{verb} {shortened(which)}" for verb, which in parts.items() if which)
    if not why:  # the names are equal
        label = next(label for label, name in enumerate(now) if name != before[label])
        why = f"has another order: label {label} is {printable(now[label])}, and was {printable(before[label])}"
    raise CheckpointError(
        f"{checkpoint.path} cannot be resumed on other classes: the data set {why}; restore its classes, or start "
        f"another run, with MODEL.INIT_FROM {checkpoint.path} and another --output"
    )


def _with_global_batch(checkpoint: Checkpoint, cfg: CfgNode, num_gpus: int) -> CfgNode:
    """Adapt SOLVER.ACCUMULATE to fewer or more GPUs, unless the user has changed it.

    The checkpoint's config has the value that the run used, and its entry "accumulate" has the value that the user set.
    """
    then, gpus_then = checkpoint.cfg, checkpoint.num_gpus
    if then is None or gpus_then is None:
        return cfg
    accumulate, rest = divmod(gpus_then * then.SOLVER.ACCUMULATE, num_gpus)
    asked = {**then.SOLVER, "ACCUMULATE": checkpoint.state.get("accumulate", then.SOLVER.ACCUMULATE)}
    changed = any(asked[key] != cfg.SOLVER[key] for key in ("ACCUMULATE", "TRAIN_BATCH_SIZE"))
    if rest or changed or accumulate == cfg.SOLVER.ACCUMULATE:
        return cfg
    log.info(
        "%d GPUs before, %d now: SOLVER.ACCUMULATE %d keeps the global batch of %d images, and the rate",
        gpus_then, num_gpus, accumulate, global_batch(then, gpus_then),
    )  # fmt: skip
    return _with_key(cfg, "SOLVER.ACCUMULATE", accumulate)


def _with_drop_last(checkpoint: Checkpoint, cfg: CfgNode) -> CfgNode:
    """Keep the SOLVER.DROP_LAST that the run began with, since it decides which steps an epoch has.

    A checkpoint without a config, or whose config lacks the key, is older than the key.
    """
    then = checkpoint.cfg
    began: bool = then.SOLVER.DROP_LAST if then else BEFORE_THE_KEY["SOLVER.DROP_LAST"]
    if began == cfg.SOLVER.DROP_LAST:
        return cfg
    log.warning(
        "SOLVER.DROP_LAST %s is not used: the run of %s began with %s and keeps it; to change it, start a new run",
        cfg.SOLVER.DROP_LAST, checkpoint.path, began,
    )  # fmt: skip
    return _with_key(cfg, "SOLVER.DROP_LAST", began)


def _with_key(cfg: CfgNode, key: str, value: Any) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    node, leaf = key.split(".")
    cfg[node][leaf] = value
    cfg.freeze()
    return cfg


def changes(checkpoint: Checkpoint, cfg: CfgNode, num_images: int, num_gpus: int) -> Iterator[str]:
    """Yield what differs between the resumed run and the run of ``checkpoint``, as ``KEY old -> new``.

    num_images: the number of training images.
    """
    if then := checkpoint.cfg:
        before, now = flat(then), flat(cfg)
        ignored = may_differ(cfg)
        if checkpoint.num_gpus is not None:
            ignored.add("SOLVER.ACCUMULATE")  # a factor of the global batch, which is compared
            yield from _other_batch(then, checkpoint.num_gpus, cfg, num_gpus)
        yield from (f"{k} {before[k]} -> {now[k]}" for k in now if k not in ignored and before[k] != now[k])
    images_then = checkpoint.state.get("num_images")
    if type(images_then) is int and images_then != num_images:
        yield f"the number of training images {images_then} -> {num_images}"


def _other_batch(then: CfgNode, gpus_then: int, cfg: CfgNode, num_gpus: int) -> Iterator[str]:
    """Yield the change of the global batch, if any, with its factors and the change of the rate."""
    images = global_batch(then, gpus_then), global_batch(cfg, num_gpus)
    if images[0] == images[1]:
        return
    factors, rates = [], []
    for solver, gpus in ((then.SOLVER, gpus_then), (cfg.SOLVER, num_gpus)):
        factors.append(f"{gpus} GPUs x {solver.TRAIN_BATCH_SIZE} x SOLVER.ACCUMULATE {solver.ACCUMULATE}")
        rates.append(f"{solver.BASE_LR * solver.ACCUMULATE * gpus:g}")
    yield (
        f"the global batch {images[0]} -> {images[1]} images ({' -> '.join(factors)}), and with it the rate "
        f"{' -> '.join(rates)}"
    )
