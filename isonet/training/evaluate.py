"""Accuracy and loss of a network on a data set."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from isonet.data import Loader
from isonet.errors import DataError, printable
from isonet.files.storage import write_file
from isonet.training.amp import Amp
from isonet.training.step import count_correct, full_type
from isonet.training.world import ALONE, World

log = logging.getLogger("isonet")

_SHOWN = 10  # images left out that are listed on the terminal


@dataclass(frozen=True)
class Evaluation:
    """top1, top5: percent. loss: mean cross entropy per image."""

    top1: float
    top5: float
    loss: float
    images: int
    images_per_second: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@torch.no_grad()  # not inference_mode, which the threads of DataParallel do not inherit
def evaluate(
    model: nn.Module,
    batches: Iterable[Sequence[Any]],
    device: torch.device,
    amp: Amp | None = None,
    world: World = ALONE,
) -> Evaluation:
    """Run ``model``, in evaluation mode and back, over all ``batches``, which lie on ``device``.

    batches: images and labels, and whatever follows these; of several processes each gives its own, and
    all get the whole result. Waits for the device once, at the end. Raises ``DataError`` if there is no image.
    """
    amp = amp or Amp("off", device)
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1, top-5, images
    start = time.perf_counter()
    for inputs, labels, *_ in batches:
        if not len(labels):
            continue
        with amp.autocast():
            logits = model(inputs)
        logits = full_type(logits)
        sums[0] += F.cross_entropy(logits, labels, reduction="sum")
        sums[1:3] += count_correct(logits, labels)
        sums[3] += len(labels)
    loss, top1, top5, images = world.sum(sums).tolist()
    if not images:
        raise DataError("there is no image to evaluate on")
    seconds = time.perf_counter() - start
    model.train(was_training)
    return Evaluation(100 * top1 / images, 100 * top5 / images, loss / images, int(images), images / seconds)


def list_skipped(loaders: dict[str, Loader], file: Path | None = None) -> None:
    """Tell of the images that could not be read and were left out: the first ones here, all of them in ``file``."""
    skipped = [
        f"{split}: {printable(path)}: {why}"
        for split, loader in loaders.items()
        for path, why in loader.skipped.items()
    ]
    if not skipped:
        return
    log.warning("%d images could not be read and were left out (DATASET.ON_ERROR skip):", len(skipped))
    for line in skipped if file is None else skipped[:_SHOWN]:
        log.warning("  %s", line)
    if file is not None:
        try:  # together with those that the run met before it was resumed
            before = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
            write_file(file, "".join(f"{line}\n" for line in dict.fromkeys([*before, *skipped])))
            log.warning("all of them are listed in %s", file)
        except OSError as error:  # which must not hide why the run ends
            log.warning("%s", error)
