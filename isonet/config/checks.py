"""Checks that the values of a config agree with each other."""

from collections.abc import Iterator

from yacs.config import CfgNode

from isonet.config.file import shown
from isonet.config.keys import SMALL_IMAGE

# Two halvings reduce 4 pixels to 1, and batch norm cannot compute a variance if a batch has a single image
_SMALLEST_IMAGE = 5


def contradictions(cfg: CfgNode, image_size: int) -> Iterator[tuple[str, str]]:
    """Yield each key whose value contradicts another value, and the end of a sentence that begins with the key.

    image_size: the side of the network's images in pixels.
    """
    solver, ison, data, runtime = cfg.SOLVER, cfg.ISON, cfg.DATASET, cfg.RUNTIME
    milestones = solver.LR_MILESTONES
    if milestones != sorted(set(milestones)):
        yield "SOLVER.LR_MILESTONES", f"must be epochs in rising order, got {shown(milestones)}"
    if len(milestones) > 1000:
        yield "SOLVER.LR_MILESTONES", f"must be at most 1000 epochs, got {len(milestones)}"
    if solver.NESTEROV and (solver.MOMENTUM == 0 or solver.DAMPENING):
        yield "SOLVER.NESTEROV", "needs SOLVER.MOMENTUM above 0 and SOLVER.DAMPENING False"
    if solver.SCHEDULE != "steps" and solver.WARMUP and solver.WARMUP_EPOCH > solver.MAX_EPOCHS:
        problem = f"{solver.WARMUP_EPOCH} leaves no epoch of {solver.MAX_EPOCHS} for the rate to fall"
        yield "SOLVER.WARMUP_EPOCH", problem

    if (ison.DELTA_ORTHOGONAL or ison.ORTHOGONAL_CONV) and not ison.DIRAC_INIT:
        yield "ISON.DIRAC_INIT", "must be True with ISON.DELTA_ORTHOGONAL and with ISON.ORTHOGONAL_CONV"
    if ison.DELTA_ORTHOGONAL and ison.ORTHOGONAL_CONV:
        yield "ISON.ORTHOGONAL_CONV", "and ISON.DELTA_ORTHOGONAL are two initialisations: set one of them False"
    if ison.HAS_RES_MULTIPLIER and ison.RES_MULTIPLIER == 0 and not ison.HAS_ST:
        yield "ISON.RES_MULTIPLIER", "0 without shortcuts (ISON.HAS_ST) makes the network's output constant"

    for key in ("MEAN", "STD"):
        if len(data[key]) not in (0, 3):
            yield f"DATASET.{key}", f"takes three values, one per channel, got {shown(data[key])}"
    if data.NAME in ("", ".", "..") or "/" in data.NAME or "\\" in data.NAME:
        yield "DATASET.NAME", f"must be the name of one folder below DATASET.ROOT, got {shown(data.NAME)}"
    if data.PADDING >= 0 and image_size > SMALL_IMAGE:
        yield "DATASET.PADDING", f"is for images of up to {SMALL_IMAGE} pixels, and these have {image_size}: use -1"
    if image_size < _SMALLEST_IMAGE:
        yield "DATASET.IMAGE_SIZE", f"must be 0 (the data set's own) or at least {_SMALLEST_IMAGE}, got {image_size}"

    if runtime.CHECKPOINT_ACTIVATIONS and runtime.COMPILE:
        yield "RUNTIME.CHECKPOINT_ACTIVATIONS", "does not go with RUNTIME.COMPILE: set one of them False"
    if runtime.CHECKPOINT_ACTIVATIONS and ison.HAS_BN:
        yield "RUNTIME.CHECKPOINT_ACTIVATIONS", "would count each batch twice in the statistics of ISON.HAS_BN"
    if runtime.INPUT == "memory" and image_size > SMALL_IMAGE:
        yield "RUNTIME.INPUT", f"memory takes up to {SMALL_IMAGE} pixels a side, not {image_size}: use auto or workers"
    if runtime.INPUT == "shards" and data.NAME in ("CIFAR10", "CIFAR100", "digits"):
        yield "RUNTIME.INPUT", f"shards are made from an image folder, which {data.NAME} is not: use auto"
