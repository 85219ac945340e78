"""One pass over the training set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from isonet.training.finetune import train_mode
from isonet.training.step import StepOutput
from isonet.training.sums import EpochSums


class NonFiniteStep(Exception):  # noqa: N818 - what it means for the run is said by the run
    """Step ``step`` of the epoch, counted from 1, had a loss or a gradient that was infinite or not a number.

    0: none had, and yet the weights are not finite, since the last update was too large.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"non-finite step {step}")
        self.step = step


class TimedBatches:
    """Passes batches on and adds up the seconds that the caller waited for them."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor, int]]) -> None:
        self.batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
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
    step: Callable[[Tensor, Tensor, int, int], StepOutput],
    batches: Iterable[tuple[Tensor, Tensor, int]],
    sums: EpochSums,
    log_every: int,
    on_step: Callable[[int, dict[str, float] | None], None],
) -> dict[str, float]:
    """Take a step of ``model`` on every batch, all of which lie on the device of ``sums``.

    batches: images, labels, and how many images all processes have together. step: is given these and its
    number in the epoch. Returns the means over the epoch. ``sums`` may hold its beginning, from before an
    interruption. ``on_step`` is told each step's number, and every ``log_every`` steps the means so far as
    well; what it raises ends the epoch. Raises ``NonFiniteStep`` at the first such look, or at the end.
    """
    train_mode(model)
    timed = TimedBatches(batches)
    start, seconds, waited = time.perf_counter(), sums.seconds, sums.waited
    for images, labels, total in timed:
        sums.add(step(images, labels, total, sums.steps + 1), labels, total)
        sums.seconds, sums.waited = seconds + time.perf_counter() - start, waited + timed.seconds
        looks = sums.steps % log_every == 0
        on_step(sums.steps, finite_means(model, sums) if looks else None)

    means = finite_means(model, sums)
    sums.seconds, sums.waited = seconds + time.perf_counter() - start, waited + timed.seconds
    return means


def finite_means(model: nn.Module, sums: EpochSums) -> dict[str, float]:
    """The means so far; ``NonFiniteStep``, on all processes, where a step or a weight of any was not finite."""
    means = sums.read()
    bad_step = int(means.pop("bad_step"))
    # With batch norm's means and variances, of which each process has its own
    weights = [value for value in model.state_dict().values() if value.is_floating_point()]
    if not sums.world.lowest(get_total_norm(weights).isfinite().int()) or bad_step:
        raise NonFiniteStep(bad_step)
    return means
