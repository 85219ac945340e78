"""Accuracy and loss of a network on a data set."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isonet.training.amp import Amp
from isonet.training.step import count_correct


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
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, amp: Amp | None = None
) -> Evaluation:
    """Run ``model``, in evaluation mode and back, over all ``batches``, which lie on ``device``.

    Waits for the device once, at the end.
    """
    amp = amp or Amp("off", device)
    was_training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros(2, dtype=torch.int64, device=device)
    images = 0
    start = time.perf_counter()
    for inputs, labels in batches:
        with amp.autocast():
            logits = model(inputs)
        logits = logits.float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += count_correct(logits, labels)
        images += len(labels)
    top1, top5 = correct.tolist()
    seconds = time.perf_counter() - start
    model.train(was_training)
    return Evaluation(100 * top1 / images, 100 * top5 / images, loss.item() / images, images, images / seconds)
