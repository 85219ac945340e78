"""Batches that all processes of a run take in step, and that all of them leave at the same one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from isonet.data import Loader
from isonet.data.faults import STORAGE_GONE, WHOLE_BATCH
from isonet.errors import DataError
from isonet.training.stop import SIGNALS, StopRequested, StopSignals
from isonet.training.world import ALONE, Answer, World


class Lockstep:
    """Yields (images, labels, number of images of the batch over all processes) from a loader, one batch behind it.

    While a step computes, the processes tell each other how many images of the next batch they could read,
    and whether a signal has come: so nobody waits for the answer, and all take the same last step.
    Raises ``StopRequested`` on all of them where one has received a signal. Small batches of which no process
    has an image are passed over; at a larger one it raises ``DataError``.

    taken: images of the epoch's order up to the batch that was yielded last.
    """

    def __init__(self, loader: Loader, world: World = ALONE, stop: StopSignals | None = None) -> None:
        self.loader = loader
        self.world = world
        self.stop = stop
        self.taken = loader.taken

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        behind: tuple[Tensor, Tensor, int, Answer] | None = None
        for images, labels in self.loader:
            entry = images, labels, self.loader.taken, self._count(len(labels))
            if behind:
                yield from self._hand_over(*behind)
            behind = entry
        if behind:
            yield from self._hand_over(*behind)
        self._hear(self._count(0))

    def _count(self, images: int) -> Answer:
        """Numbers of images, and for each signal of the processes that have received it."""
        return self.world.count(
            lambda: [images, *(bool(self.stop) and self.stop.received == s.name for s in SIGNALS)]  # type: ignore[union-attr]
        )

    def _hear(self, answer: Answer) -> int:
        total, *received = answer()
        for number, processes in zip(SIGNALS, received, strict=True):
            if processes:
                raise StopRequested(number.name)
        return total

    def _hand_over(self, images: Tensor, labels: Tensor, taken: int, answer: Answer) -> Iterator[tuple]:
        total, size = self._hear(answer), taken - self.taken
        self.taken = taken
        if not total and size >= WHOLE_BATCH:  # each process has too few of them to be sure
            raise DataError(f"none of the {size} images of a batch could be read; {STORAGE_GONE}")
        if total:
            yield images, labels, total
