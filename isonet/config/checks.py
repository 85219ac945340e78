"""What each key may be: its choices, its range, and how it must agree with others."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from yacs.config import CfgNode

from isonet.config.file import flatten, shown

SMALL_IMAGE = 64  # pixels; up to this side it is a CIFAR network
# Of 4 pixels one is left after two halvings, and batch norm has no variance where a batch ends in a single image
_SMALLEST_IMAGE = 5

CHOICES = {
    "SOLVER.SCHEDULE": ("steps", "linear", "cosine"),
    "ISON.ORTHO_STRIDED": ("published", "operator"),
    "RUNTIME.AMP": ("off", "bf16", "fp16"),
    "RUNTIME.INPUT": ("auto", "workers", "memory", "shards"),
    "RUNTIME.DECODER": ("pil", "torch"),
    "DATASET.ON_ERROR": ("stop", "skip"),
    "MODEL.FREEZE": ("stem", "s1", "s2", "s3", "s4", "head"),  # CIFAR networks have no s4
}


def faults(cfg: CfgNode, image_size: int) -> Iterator[tuple[str, str]]:
    """Keys out of their range or at odds with others, each with what is wrong with it."""
    values = dict(flatten(cfg))
    for key, (low, high) in RANGES.items():
        items = values[key] if isinstance(values[key], list) else [values[key]]
        if not all(low <= item <= high for item in items):  # nor is nan
            each = "values " if items is values[key] else ""
            yield key, f"must be {each}between {low} and {high}, got {shown(values[key])}"
    for key, value in values.items():
        if isinstance(value, str) and (fault := _fault_of_text(key, value)):
            yield key, fault
    for key, choices in CHOICES.items():
        items = values[key] if isinstance(values[key], list) else [values[key]]
        if not all(item in choices for item in items):
            each = "names out of" if items is values[key] else "one of"
            yield key, f"must be {each} {', '.join(choices)}, got {shown(values[key])}"
    for wrong, key, message in _contradictions(cfg, image_size):
        if wrong:
            yield key, message


def _fault_of_text(key: str, text: str) -> str:
    """Why ``text`` can name no file: logs and checkpoints carry it, too. Empty: it can."""
    for char in text:
        if unicodedata.category(char) in ("Cc", "Cs"):  # control characters, halves of surrogate pairs
            return f"holds the character {char!a}, which a name must not; got {shown(text)}"
    if len(text.encode()) > _LONGEST_PATH:
        return f"must be at most {_LONGEST_PATH} bytes long, got {shown(text)}"
    if any(len(part.encode()) > _LONGEST_NAME for part in text.split("/")):
        return f"must have at most {_LONGEST_NAME} bytes in a name, got {shown(text)}"
    return ""


_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # bytes, of Linux and its file systems

_ALMOST_ONE = 1 - 1e-6
# Generous, and finite: beyond them lies a slip of the finger, or a number that overflows somewhere
RANGES: dict[str, tuple[float, float]] = {
    "DATASET.NUM_CLASSES": (1, 1_000_000),
    "DATASET.NUM_WORKERS": (0, 4096),
    "DATASET.IMAGE_SIZE": (0, 8192),
    "DATASET.PADDING": (-1, SMALL_IMAGE),
    "DATASET.MEAN": (0, 1),
    "DATASET.STD": (1e-4, 1e4),
    "DATASET.SHUFFLE_BUFFER": (1, 1_000_000),
    "SOLVER.BASE_LR": (0, 1e6),
    "SOLVER.LR_MILESTONES": (0, 1_000_000),
    "SOLVER.LR_GAMMA": (0, 1e6),
    "SOLVER.WEIGHT_DECAY": (0, 1e6),
    "SOLVER.MOMENTUM": (0, _ALMOST_ONE),
    "SOLVER.TRAIN_BATCH_SIZE": (1, 1_000_000),
    "SOLVER.TEST_BATCH_SIZE": (1, 1_000_000),
    "SOLVER.ACCUMULATE": (1, 10_000),
    "SOLVER.MAX_EPOCHS": (1, 1_000_000),
    "SOLVER.WARMUP_EPOCH": (1, 1_000_000),
    "SOLVER.WARMUP_FACTOR": (0, 1),
    "ISON.DEPTH": (1, 10_000),
    "ISON.ORTHO_COEFF": (0, 1e6),
    "ISON.STEM_GAIN": (1e-6, 1e6),  # 0 is a network of constant output
    "ISON.RES_MULTIPLIER": (-1e6, 1e6),
    "ISON.DROPOUT_RATE": (0, _ALMOST_ONE),
    "RUNTIME.SEED": (0, 2**63 - 1),
    "RUNTIME.PROFILE": (0, 1000),
    "RUNTIME.LOG_EVERY": (1, 1_000_000_000),
    "RUNTIME.LOG_SPECTRUM": (0, 1_000_000),
    "RUNTIME.SAVE_EVERY": (0, 1_000_000_000),
    "RUNTIME.KEEP": (1, 10_000),
}


Check = tuple[bool, str, str]  # whether it is wrong, the key, what is wrong with it


def _contradictions(cfg: CfgNode, image_size: int) -> Iterator[Check]:
    yield from _of_solver(cfg.SOLVER)
    yield from _of_network(cfg)
    yield from _of_data(cfg.DATASET, image_size)
    yield from _of_runtime(cfg, image_size)


def _of_solver(solver: CfgNode) -> Iterator[Check]:
    milestones = solver.LR_MILESTONES
    yield (
        milestones != sorted(set(milestones)),
        "SOLVER.LR_MILESTONES",
        f"must be epochs in rising order, got {shown(milestones)}",
    )
    yield (
        len(milestones) > 1000,
        "SOLVER.LR_MILESTONES",
        f"must be at most 1000 epochs, got {len(milestones)}",
    )
    yield (
        solver.NESTEROV and (solver.MOMENTUM == 0 or solver.DAMPENING),
        "SOLVER.NESTEROV",
        "needs SOLVER.MOMENTUM above 0 and SOLVER.DAMPENING False",
    )
    yield (
        solver.SCHEDULE != "steps" and solver.WARMUP and solver.WARMUP_EPOCH > solver.MAX_EPOCHS,
        "SOLVER.WARMUP_EPOCH",
        f"{solver.WARMUP_EPOCH} leaves no epoch of {solver.MAX_EPOCHS} in which the rate falls",
    )


def _of_network(cfg: CfgNode) -> Iterator[Check]:
    ison = cfg.ISON
    for key in ("DELTA_ORTHOGONAL", "ORTHOGONAL_CONV"):
        yield (
            ison[key] and not ison.DIRAC_INIT,
            f"ISON.{key}",
            "takes the place of the delta initialisation: set ISON.DIRAC_INIT True with it",
        )
    yield (
        ison.DELTA_ORTHOGONAL and ison.ORTHOGONAL_CONV,
        "ISON.ORTHOGONAL_CONV",
        "and ISON.DELTA_ORTHOGONAL are two initialisations: set one of them False",
    )
    yield (
        ison.HAS_RES_MULTIPLIER and not ison.HAS_ST and ison.RES_MULTIPLIER == 0,
        "ISON.RES_MULTIPLIER",
        "0 without shortcuts (ISON.HAS_ST) is a network of constant output",
    )
    yield (
        len(set(cfg.MODEL.FREEZE)) < len(cfg.MODEL.FREEZE),
        "MODEL.FREEZE",
        f"names a part twice, got {shown(cfg.MODEL.FREEZE)}",
    )


def _of_data(data: CfgNode, image_size: int) -> Iterator[Check]:
    for key, values in (("DATASET.MEAN", data.MEAN), ("DATASET.STD", data.STD)):
        yield len(values) not in (0, 3), key, f"takes three values, one per channel, got {shown(values)}"
    yield (
        data.NAME in ("", ".", "..") or "/" in data.NAME or "\\" in data.NAME,
        "DATASET.NAME",
        f"is the name of one folder under DATASET.ROOT, got {shown(data.NAME)}",
    )
    yield (
        data.PADDING >= 0 and image_size > SMALL_IMAGE,
        "DATASET.PADDING",
        f"is of images of up to {SMALL_IMAGE} pixels, and these have {image_size}: use -1",
    )
    yield (
        0 < data.IMAGE_SIZE < _SMALLEST_IMAGE,
        "DATASET.IMAGE_SIZE",
        f"must be 0, which is the data set's own, or at least {_SMALLEST_IMAGE}, got {data.IMAGE_SIZE}",
    )


def _of_runtime(cfg: CfgNode, image_size: int) -> Iterator[Check]:
    runtime, data = cfg.RUNTIME, cfg.DATASET
    yield (
        runtime.CHECKPOINT_ACTIVATIONS and runtime.COMPILE,
        "RUNTIME.CHECKPOINT_ACTIVATIONS",
        "does not go with RUNTIME.COMPILE, which plans its memory by itself: leave one of them out",
    )
    yield (
        runtime.CHECKPOINT_ACTIVATIONS and cfg.ISON.HAS_BN,
        "RUNTIME.CHECKPOINT_ACTIVATIONS",
        "would count each batch twice in batch norm's statistics (ISON.HAS_BN): set one of them False",
    )
    yield (
        runtime.INPUT == "memory" and image_size > SMALL_IMAGE,
        "RUNTIME.INPUT",
        f"memory holds images of up to {SMALL_IMAGE} pixels, and these have {image_size}: use auto or workers",
    )
    yield (
        runtime.INPUT == "shards" and data.NAME in ("CIFAR10", "CIFAR100", "digits"),
        "RUNTIME.INPUT",
        f"shards are made of an image folder, and {data.NAME} is none: use auto",
    )
