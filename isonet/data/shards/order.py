"""Who reads which images of the shards, and in which order: a function of seed, epoch, processes and workers.

An epoch puts the shards in a random order. That long row of images is cut into one range for each process and
within it for each of its workers, so that every image is read once, one after the other as it lies on disk; no
two of them read the same shard but at the borders of ranges. A worker draws from a buffer that it keeps filled:
the images of a shard come in random order, mixed with those of the shards around it.

If an epoch leaves out an incomplete last batch, it draws the images that it leaves out from all shards. The images at
the end of the row would all be of one shard, and with a single shard they would be the same in each epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from isonet.data.random_streams import Epochs, generator, left_out
from isonet.shares import WHOLE, Share


@dataclass(frozen=True)
class Stream:
    """What a worker does in an epoch.

    numbers: of the images of its range, in the order of reading. handed: the same images in the order of its
    batches, as positions in ``numbers``. pieces: how many images each of its batches has.
    """

    numbers: list[int]
    handed: list[int]
    pieces: list[int]


@dataclass(frozen=True)
class ShardOrder:
    """Batches of ``batch_size`` images over all processes, of which this one has its ``share``.

    Batch b of an epoch is made by worker ``b % workers`` of each process. sizes: images of each shard.
    buffer: images out of which the next is drawn; not used unless they are to be shuffled. drop_last: leave out the
    last, incomplete batch (see ``left_out``).
    """

    sizes: Sequence[int]
    batch_size: int
    shuffle: bool
    buffer: int
    seed: int
    share: Share = WHOLE
    workers: int = 1
    drop_last: bool = False

    @property
    def num_images(self) -> int:
        return sum(self.sizes)

    @property
    def num_left_out(self) -> int:
        """How many images an epoch leaves out."""
        return left_out(self.num_images, self.batch_size, self.drop_last)

    def stream(self, epoch: int, worker: int) -> Stream:
        """What ``worker`` of this process does in ``epoch``."""
        full, rest = divmod(self.num_images - self.num_left_out, self.batch_size)
        pieces = [self.share.size(self.batch_size)] * full + [self.share.size(rest)] * (rest > 0)
        before = full * self.share.of(self.batch_size).start + self.share.of(rest).start  # of other processes
        before += sum(sum(pieces[other :: self.workers]) for other in range(worker))
        mine = pieces[worker :: self.workers]
        numbers = self._row(epoch)[before : before + sum(mine)].tolist()
        stream = generator(self.seed, "buffer", epoch, self.share.index, self.share.parts, worker, self.workers)
        handed = drawn_from_buffer(len(numbers), self.buffer, stream) if self.shuffle else list(range(len(numbers)))
        return Stream(numbers, handed, mine)

    def _row(self, epoch: int) -> torch.Tensor:
        """The numbers of the epoch's images, shard after shard: (num_images - num_left_out,) int64."""
        order = torch.arange(len(self.sizes))
        if self.shuffle:
            order = torch.randperm(len(self.sizes), generator=generator(self.seed, "shards", epoch))
        shards = torch.arange(self.num_images).split(list(self.sizes))
        row = torch.cat([shards[i] for i in order.tolist()])
        if not self.num_left_out:
            return row
        drawn = torch.randperm(self.num_images, generator=generator(self.seed, "left out", epoch))
        kept = torch.ones(self.num_images, dtype=torch.bool)
        kept[drawn[: self.num_left_out]] = False
        return row[kept[row]]


def drawn_from_buffer(count: int, buffer: int, stream: torch.Generator) -> list[int]:
    """The positions 0 to ``count - 1`` in the order in which they leave a buffer that they enter in turn.

    While there is a next one it takes the place of the one that is drawn; in the end the buffer runs empty.
    """
    held = list(range(min(buffer, count)))
    handed = []
    for position, place in enumerate(torch.randint(buffer, (max(0, count - buffer),), generator=stream).tolist()):
        handed.append(held[place])
        held[place] = buffer + position
    return handed + [held[i] for i in torch.randperm(len(held), generator=stream).tolist()]


class ShardBatches(Epochs):
    """Yields (epoch, number of the batch), alone in a list, for each batch to come of an epoch.

    source: what tells these shards from others. An interrupted epoch goes on with a whole batch, and like the
    uninterrupted one if ``layout`` is the same.
    """

    def __init__(self, order: ShardOrder, source: str) -> None:
        super().__init__(order.num_images, order.batch_size, order.drop_last)
        if order.shuffle:
            self.layout = (
                f"{order.share.parts} processes of {order.workers} workers, batches of {order.batch_size}, "
                f"buffers of {order.buffer}, {len(order.sizes)} shards {source[:8]}"
            )

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        super().set_epoch(epoch, skip if skip == self.num_images else skip - skip % self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.skip // self.batch_size
        return ([(self.epoch, first + i)] for i in range(len(self)))
