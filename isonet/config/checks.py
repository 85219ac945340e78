"""Whether the values of a config are in range, and agree with each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from isonet.config.file import shown
from isonet.config.keys import KEYS, SMALL_IMAGE

# 4 pixels are 1 after two halvings, and batch norm has no variance if a batch ends in a single image
_SMALLEST_IMAGE = 5

Faults = Iterator[tuple[str, str]]


def faults(values: dict[str, Any], image_size: int) -> Faults:
    """Yield each key whose value is out of range, or contradicts another, with what is wrong with it.

    values: of every key. image_size: the side of the network's images in pixels.
    """
    for key, value in values.items():
        if fault := KEYS[key].kind.fault(value):
            yield key, fault
    yield from _of_solver(values)
    yield from _of_network(values)
    yield from _of_data(values, image_size)
    yield from _of_runtime(values, image_size)


def _of_solver(values: dict[str, Any]) -> Faults:
    milestones = values["SOLVER.LR_MILESTONES"]
    if milestones != sorted(set(milestones)):
        yield "SOLVER.LR_MILESTONES", f"must be epochs in rising order, got {shown(milestones)}"
    if len(milestones) > 1000:
        yield "SOLVER.LR_MILESTONES", f"must be at most 1000 epochs, got {len(milestones)}"
    if values["SOLVER.NESTEROV"] and (values["SOLVER.MOMENTUM"] == 0 or values["SOLVER.DAMPENING"]):
        yield "SOLVER.NESTEROV", "needs SOLVER.MOMENTUM above 0 and SOLVER.DAMPENING False"
    warmup, epochs = values["SOLVER.WARMUP_EPOCH"], values["SOLVER.MAX_EPOCHS"]
    if values["SOLVER.SCHEDULE"] != "steps" and values["SOLVER.WARMUP"] and warmup > epochs:
        yield "SOLVER.WARMUP_EPOCH", f"{warmup} leaves no epoch of {epochs} in which the rate falls"


def _of_network(values: dict[str, Any]) -> Faults:
    other_inits = [key for key in ("ISON.DELTA_ORTHOGONAL", "ISON.ORTHOGONAL_CONV") if values[key]]
    if other_inits and not values["ISON.DIRAC_INIT"]:
        yield other_inits[0], "replaces the delta initialisation: set ISON.DIRAC_INIT True as well"
    if len(other_inits) > 1:
        yield "ISON.ORTHOGONAL_CONV", "and ISON.DELTA_ORTHOGONAL are two initialisations: set one of them False"
    scaled_by_0 = values["ISON.HAS_RES_MULTIPLIER"] and values["ISON.RES_MULTIPLIER"] == 0
    if scaled_by_0 and not values["ISON.HAS_ST"]:
        yield "ISON.RES_MULTIPLIER", "0 without shortcuts (ISON.HAS_ST) makes a network of constant output"
    frozen = values["MODEL.FREEZE"]
    if len(set(frozen)) < len(frozen):
        yield "MODEL.FREEZE", f"names a part twice, got {shown(frozen)}"


def _of_data(values: dict[str, Any], image_size: int) -> Faults:
    for key in ("DATASET.MEAN", "DATASET.STD"):
        if len(values[key]) not in (0, 3):
            yield key, f"takes three values, one per channel, got {shown(values[key])}"
    name, size = values["DATASET.NAME"], values["DATASET.IMAGE_SIZE"]
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        yield "DATASET.NAME", f"is the name of one folder below DATASET.ROOT, got {shown(name)}"
    if values["DATASET.PADDING"] >= 0 and image_size > SMALL_IMAGE:
        yield "DATASET.PADDING", f"is for images of up to {SMALL_IMAGE} pixels, and these have {image_size}: use -1"
    if 0 < size < _SMALLEST_IMAGE:
        yield "DATASET.IMAGE_SIZE", f"must be 0, for the data set's own, or at least {_SMALLEST_IMAGE}, got {size}"


def _of_runtime(values: dict[str, Any], image_size: int) -> Faults:
    source, name = values["RUNTIME.INPUT"], values["DATASET.NAME"]
    if values["RUNTIME.CHECKPOINT_ACTIVATIONS"] and values["RUNTIME.COMPILE"]:
        yield (
            "RUNTIME.CHECKPOINT_ACTIVATIONS",
            "does not go with RUNTIME.COMPILE, which plans its memory itself: leave one of them out",
        )
    if values["RUNTIME.CHECKPOINT_ACTIVATIONS"] and values["ISON.HAS_BN"]:
        yield (
            "RUNTIME.CHECKPOINT_ACTIVATIONS",
            "would count each batch twice in batch norm's statistics (ISON.HAS_BN): set one of them False",
        )
    if source == "memory" and image_size > SMALL_IMAGE:
        yield (
            "RUNTIME.INPUT",
            f"memory keeps images of up to {SMALL_IMAGE} pixels, and these have {image_size}: use auto or workers",
        )
    if source == "shards" and name in ("CIFAR10", "CIFAR100", "digits"):
        yield "RUNTIME.INPUT", f"shards are made from an image folder, which {name} is not: use auto"
