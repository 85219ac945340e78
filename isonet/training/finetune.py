"""Fine-tuning: start from trained weights, and freeze parts of the network."""

import logging
from collections.abc import Sequence

from torch import nn
from yacs.config import CfgNode

from isonet.classes import composed, imagenet_classes, shortened
from isonet.errors import CheckpointError, ConfigError
from isonet.files.checkpoint import Checkpoint, load_matching
from isonet.files.zoo import open_checkpoint
from isonet.training.distributed import World

log = logging.getLogger("isonet")


def weights_to_start_from(cfg: CfgNode, world: World) -> Checkpoint | None:
    """Return the checkpoint of MODEL.INIT_FROM on all ranks, or None if the key is empty. Rank 0 reads the file."""
    return world.from_main(lambda: _read(cfg)) if cfg.MODEL.INIT_FROM else None


def start_from(model: nn.Module, checkpoint: Checkpoint | None) -> list[str] | None:
    """Load the weights of ``checkpoint``, which MODEL.INIT_FROM names, into ``model``. None changes nothing.

    If the checkpoint's head has another number of classes, the head keeps its initial weights. Returns the class
    names in the checkpoint (empty if it has no names) if the head is loaded, otherwise None. Raises ``CheckpointError``
    for a file that cannot be used and for weights that do not fit.
    """
    if checkpoint is None:
        return None
    path, weights, own = checkpoint.path, checkpoint.weights, model.state_dict()
    fresh = load_matching(model, weights, path)
    log.info("MODEL.INIT_FROM: %d of %d tensors are those of %s", len(own) - len(fresh), len(own), path)
    for name in fresh:
        log.info("  fresh: %s, %s there and %s here", name, tuple(weights[name].shape), tuple(own[name].shape))
    return None if fresh else checkpoint.classes or []


def _read(cfg: CfgNode) -> Checkpoint:
    try:
        checkpoint = open_checkpoint(cfg, cfg.MODEL.INIT_FROM)
    except CheckpointError as error:
        raise CheckpointError(f"MODEL.INIT_FROM: {str(error).removeprefix('--ckpt ')}") from None
    kept = {key: checkpoint.state[key] for key in ("classes",) if key in checkpoint.state}
    return Checkpoint(checkpoint.path, {"model": checkpoint.weights, **kept})  # without momentum: less to broadcast


def classes_of_head(before: Sequence[str] | None, names: Sequence[str], outputs: int) -> Sequence[str]:
    """Return the classes of a run on data with the classes ``names``, in the order of their labels.

    before: the result of ``start_from``. A loaded head keeps its order if its classes have the same names. A loaded
    head with 1,000 ``outputs`` and without names has the order of ImageNet if ``names`` are WordNet ids. Logs a warning
    if the classes of the head have other names.
    """
    if before is None:
        return names
    if not before:
        return imagenet_classes(names, outputs) or names
    if sorted(map(composed, before)) == sorted(map(composed, names)):
        return before
    shown = shortened(before), shortened(names)
    log.warning("the head was trained to distinguish %s; this run trains it to distinguish %s", *shown)
    return names


def freeze(model: nn.Module, cfg: CfgNode) -> None:
    """Freeze the parts of ``model`` that MODEL.FREEZE names. Raises ``ConfigError`` for parts it does not have."""
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
    log.info("MODEL.FREEZE: %s keep their weights, %d of %d parameters are trained", ", ".join(names), trained, total)
    if not cfg.MODEL.INIT_FROM:
        log.warning("MODEL.FREEZE without MODEL.INIT_FROM: these parts keep their initial weights")


def trained_parts(model: nn.Module) -> nn.Module:
    """Return ``model`` without its frozen parts, with the same names, to compute the penalty."""
    parts = {name: part for name, part in model.named_children() if not _is_frozen(part)}
    return nn.ModuleDict(parts) if len(parts) < len(list(model.children())) else model


def train_mode(model: nn.Module) -> None:
    """Set training mode for all parts except frozen ones, whose batch norm keeps its means and variances."""
    model.train()
    for part in model.children():
        if _is_frozen(part):
            part.eval()


def _is_frozen(part: nn.Module) -> bool:
    parameters = list(part.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
