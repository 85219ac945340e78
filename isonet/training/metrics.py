"""Sums over the steps of an epoch, kept on the device, and the evaluation of a network."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from isonet.errors import DataError
from isonet.files.progress import Part
from isonet.training.distributed import ALONE, World
from isonet.training.optim import Amp
from isonet.training.step import StepOutput, full_type

Batch = TypeVar("Batch")

TOP_K = 5
_NEVER = torch.iinfo(torch.int64).max


class NonFiniteStep(Exception):  # noqa: N818 - the loop turns it into an error for the user
    """Raised if step ``step`` of the epoch, counted from 1, had a non-finite loss or gradient.

    If ``step`` is 0, every loss and gradient was finite, but the last update was so large that some weights are not.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"non-finite step {step}")
        self.step = step


class EpochSums:
    """Sums over the steps of an epoch.

    Each rank of ``world`` adds up its own images. ``means`` and ``part`` add the ranks and wait for the device; all
    ranks call them at the same step.

    last_penalty: whether the penalty is the value of the last step instead of the mean over the steps.
    steps: the number of added steps. taken: the number of their images, on all ranks. seconds: the time of the steps.
    waited: the part of ``seconds`` in which the loop waited for data.
    """

    def __init__(
        self, device: torch.device, world: World = ALONE, part: Part | None = None, last_penalty: bool = False
    ) -> None:
        """part: the sums of the steps already done in this epoch, from a checkpoint saved within the epoch."""
        self.last_penalty = last_penalty
        self.world = world
        # cross entropy x images, penalty, images, top-1, top-5: float64 counts exactly beyond any epoch
        self.own = torch.zeros(5, dtype=torch.float64, device=device)
        self.bad_step = torch.full((), _NEVER, device=device)  # the first non-finite step
        self.steps, self.taken, self.seconds, self.waited = 0, 0, 0.0, 0.0
        self.lap: float | None = None  # when the seconds were last added, while the loop runs
        if part:
            sums, self.taken = part.sums, part.taken
            if world.is_main:  # rank 0 starts with the sums of all ranks
                own = [*sums["losses"], sums["images"], *sums["correct"]]
                self.own.copy_(torch.tensor(own, dtype=torch.float64))
            self.steps, self.seconds, self.waited = sums["steps"], sums["seconds"], sums["waited"]

    def add(self, output: StepOutput, labels: Tensor, total: int | None = None) -> None:
        """Add a step. labels: (N,). total: the number of images in the batch on all ranks, by default N."""
        total = total or len(labels)
        self.steps += 1
        self.taken += total
        losses = [output.cross_entropy * total, output.penalty, torch.full_like(output.penalty, len(labels))]
        if self.last_penalty:  # as if all steps had this one
            self.own[1] = output.penalty.double() * (self.steps - 1)
        self.own += torch.cat([torch.stack(losses).double(), count_correct(output.logits, labels)])
        self.bad_step.clamp_(max=torch.where(output.finite, _NEVER, self.steps))

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and measure how long the loop takes and how long it waits for them."""
        iterator = iter(batches)
        self.lap = time.perf_counter()
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                break
            yield batch
            self._end_lap()
        self.own.cpu()  # waits for the device, which may still compute the last steps
        self._end_lap()
        self.lap = None

    def _end_lap(self) -> None:
        now = time.perf_counter()
        self.seconds += now - (self.lap or now)
        self.lap = now

    def means(self, model: nn.Module | None = None) -> dict[str, float]:
        """Return the means over all ranks so far, with accuracies in percent.

        Raises ``NonFiniteStep``, on all ranks, if a step of one of them or a value of ``model`` was non-finite.
        """
        cross_entropy, penalty, images, top1, top5 = self._totals()
        self._raise_if_non_finite(model)
        penalty /= self.steps
        if self.last_penalty:  # a resumed run has it in float32, on one rank (``TrainStep.set_last_penalty``)
            penalty = torch.tensor(penalty, dtype=torch.float32).item()
        return {
            "cross_entropy": cross_entropy / images,
            "penalty": penalty,
            "train_top1": 100 * top1 / images,
            "train_top5": 100 * top5 / images,
        }

    def _raise_if_non_finite(self, model: nn.Module | None) -> None:
        bad_step = int(self.world.minimum(self.bad_step.clone()))
        if bad_step != _NEVER:
            raise NonFiniteStep(bad_step)
        if model is not None:  # with batch norm's means and variances, which differ between ranks
            values = [value for value in model.state_dict().values() if value.is_floating_point()]
            if not self.world.minimum(get_total_norm(values).isfinite().int()):
                raise NonFiniteStep(0)

    def part(self) -> Part:
        """Return the sums for a checkpoint within the epoch. Call ``means`` first, which raises after a failure."""
        if self.lap:
            self._end_lap()
        cross_entropy, penalty, images, top1, top5 = self._totals()
        sums: dict[str, Any] = {
            "losses": [cross_entropy, penalty],
            "correct": [int(top1), int(top5)],
            "images": int(images),
            "steps": self.steps,
            "seconds": self.seconds,
            "waited": self.waited,
        }
        return Part(self.taken, sums)

    def timing(self, epoch: int, evaluation_seconds: float) -> dict[str, float]:
        """Return the times of a finished epoch: a row of ``timing.jsonl``."""
        return {
            "epoch": epoch,
            "images_per_second": self.taken / self.seconds,
            "data_wait_seconds": self.waited,
            "seconds": self.seconds + evaluation_seconds,
        }

    def _totals(self) -> list[float]:
        return self.world.sum(self.own.clone()).tolist()


def best_classes(logits: Tensor, count: int) -> Tensor:
    """Return the ``count`` classes with the largest logits in each row of ``logits`` (N, classes), the largest first.

    The first class equals ``argmax``. If several classes have the largest logit, it is the lowest of them on every
    device. 16-bit logits are often equal, and then the first class of ``topk`` depends on ``count``.
    """
    best = logits.topk(min(count, logits.shape[1]), dim=1).indices
    first = logits.argmax(1, keepdim=True)
    place = (best == first).int().argmax(1, keepdim=True)  # 0 if ties exclude first from best
    return best.scatter(1, place, best[:, :1]).scatter(1, torch.zeros_like(place), first)


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of labels that are the first guess, and among the first five guesses: (2,) int64."""
    hits = best_classes(logits, TOP_K) == labels[:, None]
    return torch.stack([hits[:, 0].sum(), hits.sum()])


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    top1, top5: percent. loss: mean cross entropy per image, in nats. images: the number of images. top1_present,
    top5_present: percent, among the outputs of the ``classes_present`` classes that the images have. labels: the origin
    of the labels, in words.
    """

    top1: float
    top5: float
    loss: float
    images: int
    images_per_second: float
    classes_present: int | None = None
    top1_present: float | None = None
    top5_present: float | None = None
    labels: str | None = None

    @property
    def seconds(self) -> float:
        """The duration of the evaluation."""
        return self.images / self.images_per_second

    def as_dict(self) -> dict[str, Any]:
        """Return all figures that are known, for ``test.py --json``."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def as_row(self) -> dict[str, float]:
        """Return the figures of an epoch, for ``metrics.jsonl``."""
        return {"top1": self.top1, "top5": self.top5, "val_loss": self.loss}


@torch.no_grad()  # not inference_mode, which the threads of DataParallel do not inherit
def evaluate(
    model: nn.Module,
    batches: Iterable[Sequence[Any]],
    device: torch.device,
    amp: Amp | None = None,
    world: World = ALONE,
    present: Sequence[int] | None = None,
) -> Evaluation:
    """Evaluate ``model`` on ``batches`` of images and labels on ``device``, and restore its mode.

    Each rank passes its own batches, and all ranks return the whole result. The host waits once, at the end. present:
    the labels of the classes that the images have, for the accuracies among these classes. Raises ``DataError`` if
    there is no image.
    """
    amp = amp or Amp("off", device)
    was_training = model.training
    model.eval()
    # loss, images, top-1, top-5, and top-1 and top-5 among the present classes
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    among = None if present is None else torch.tensor(present, device=device)
    start = time.perf_counter()
    for inputs, labels, *_ in batches:
        if not len(labels):
            continue
        with amp.autocast():
            logits = model(inputs)
        logits = full_type(logits)
        sums[0] += F.cross_entropy(logits, labels, reduction="sum")
        sums[1] += len(labels)
        sums[2:4] += count_correct(logits, labels)
        if among is not None:
            others_last = torch.full_like(logits, -math.inf).index_copy(1, among, logits[:, among])
            sums[4:6] += count_correct(others_last, labels)
    loss, images, *correct = world.sum(sums).tolist()
    if not images:
        raise DataError("there is no image to evaluate on")
    seconds = time.perf_counter() - start
    model.train(was_training)
    top1, top5, *among_present = (100 * count / images for count in correct)
    of_subset = () if present is None else (len(present), *among_present)
    return Evaluation(top1, top5, loss / images, int(images), images / seconds, *of_subset)
