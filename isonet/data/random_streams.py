"""Random streams that depend on seed, epoch and image alone: not on workers, ranks or earlier draws."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.data import Sampler

from isonet.shares import WHOLE, Share


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed for the stream named by ``parts``. Unlike with sums, different names give different seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator for the stream named by ``parts``."""
    return torch.Generator().manual_seed(stream_seed(*parts))


@dataclass(frozen=True)
class Windows:
    """Shuffles images that lie in shards so that reads stay local: whole shards, some at a time.

    Each epoch puts the shards in a random order, groups consecutive ones into windows of at least ``images`` images,
    and shuffles the images of each window.
    sizes: images of each shard; image numbers count through all shards.
    """

    sizes: Sequence[int]
    images: int

    def order(self, stream: torch.Generator) -> Tensor:
        """The numbers of all images in the order of one epoch: (sum(sizes),) int64."""
        ends = list(accumulate(self.sizes))
        windows: list[list[Tensor]] = []
        room = 0  # images that the current window needs to be complete
        for shard in torch.randperm(len(ends), generator=stream).tolist():
            if room <= 0:
                windows.append([])
                room = self.images
            windows[-1].append(torch.arange(ends[shard] - self.sizes[shard], ends[shard]))
            room -= self.sizes[shard]
        if room > 0 and len(windows) > 1:  # the last window is too small: it joins the one before
            incomplete = windows.pop()
            windows[-1] += incomplete
        numbers = [torch.cat(window) for window in windows]
        return torch.cat([window[torch.randperm(len(window), generator=stream)] for window in numbers])


@dataclass(eq=False)
class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Yields this rank's piece of each batch of an epoch, as a list of (epoch, image number).

    Every rank draws the same order, a new one for each epoch, cuts it into batches of ``batch_size`` images, and takes
    its ``share`` of each batch. So each image comes once, in a batch that does not depend on the number of ranks, and
    all ranks have the same number of batches; in an incomplete last batch a piece may be empty. The epoch is part of
    each key so that workers which outlive an epoch augment for the right one.

    drop_last: leave out an incomplete last batch, other images in each epoch; a set smaller than one batch keeps it.
    windows: how to shuffle; by default all images at once.
    """

    num_images: int
    batch_size: int
    shuffle: bool
    seed: int
    share: Share = WHOLE
    drop_last: bool = False
    windows: Windows | None = None
    epoch: int = field(default=0, init=False)
    skip: int = field(default=0, init=False)

    @property
    def epoch_images(self) -> int:
        """Images taken by the end of the epoch's last batch, skipped ones included."""
        whole = self.drop_last and self.num_images >= self.batch_size
        return self.num_images - ((self.num_images - self.skip) % self.batch_size if whole else 0)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch, and begin it after the first ``skip`` images of its order."""
        if not 0 <= skip <= self.num_images:
            raise ValueError(f"cannot skip {skip} of {self.num_images} images")
        self.epoch, self.skip = epoch, skip

    def taken(self, batches: int) -> int:
        """Images of the epoch's order, over all ranks, after this many batches from ``skip`` on."""
        return min(self.skip + batches * self.batch_size, self.epoch_images)

    def __len__(self) -> int:
        return -(-(self.epoch_images - self.skip) // self.batch_size)

    def order(self) -> Tensor:
        """Numbers of the epoch's images from ``skip`` on: (epoch_images - skip,) int64."""
        if not self.shuffle:
            return torch.arange(self.skip, self.epoch_images)
        stream = generator(self.seed, "order", self.epoch)
        order = self.windows.order(stream) if self.windows else torch.randperm(self.num_images, generator=stream)
        return order[self.skip : self.epoch_images]

    def pieces(self) -> list[Tensor]:
        """The numbers of this rank's images in each batch to come."""
        batches = self.order().split(self.batch_size)[: len(self)]  # split makes one empty piece of nothing
        return [batch[self.share.of(len(batch))] for batch in batches]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, number) for number in piece.tolist()] for piece in self.pieces())
