"""One pass over the training set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from isonet.training.step import EpochSums, StepOutput


class NonFiniteLossError(Exception):
    """The loss of ``step``, counted from 1, was infinite or not a number."""

    def __init__(self, step: int) -> None:
        super().__init__(f"non-finite loss in step {step}")
        self.step = step


class TimedBatches:
    """Passes batches on and adds up the seconds that the caller waited for them."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        iterator = iter(self.batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


def train_epoch(
    model: nn.Module,
    step: Callable[[Tensor, Tensor], StepOutput],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    log_every: int,
    on_step: Callable[[int, dict[str, float] | None], None],
) -> dict[str, float]:
    """Take a step of ``model`` on every batch, all of which lie on ``device``.

    Returns the means over the epoch, its speed, and the seconds spent waiting for data.
    ``on_step`` is told each step's number, and every ``log_every`` steps the means so far as well.
    Raises ``NonFiniteLossError`` at the first such look, or at the end, after a loss that was not finite.
    """
    model.train()
    sums = EpochSums(device)
    batches = TimedBatches(batches)
    start = time.perf_counter()
    for images, labels in batches:
        sums.add(step(images, labels), labels)
        looks = sums.steps % log_every == 0
        on_step(sums.steps, _finite_means(sums) if looks else None)

    means = _finite_means(sums)
    seconds = time.perf_counter() - start
    return {**means, "images_per_second": sums.images / seconds, "data_wait_seconds": batches.seconds}


def _finite_means(sums: EpochSums) -> dict[str, float]:
    means = sums.read()
    if bad_step := means.pop("bad_step"):
        raise NonFiniteLossError(int(bad_step))
    return means
