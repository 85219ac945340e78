"""Random streams that depend only on seed, epoch and image, and not on workers, ranks or earlier draws."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.data import Sampler

from isonet.shares import WHOLE, Share


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed for the stream named by ``parts``. Different names give different seeds, unlike with sums."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator for the stream named by ``parts``."""
    return torch.Generator().manual_seed(stream_seed(*parts))


@dataclass(frozen=True)
class Windows:
    """Shuffles the images of shards so that reads stay local: only a few whole shards are read at a time.

    Each epoch puts the shards in a random order, groups consecutive shards into windows of at least ``images`` images,
    and shuffles the images of each window.
    sizes: the number of images of each shard. Image numbers count through all shards.
    """

    sizes: Sequence[int]
    images: int

    def order(self, stream: torch.Generator) -> Tensor:
        """The numbers of all images in the order of one epoch: (sum(sizes),) int64."""
        ends = list(accumulate(self.sizes))
        windows: list[list[Tensor]] = []
        room = 0  # number of images that the current window still needs
        for shard in torch.randperm(len(ends), generator=stream).tolist():
            if room <= 0:
                windows.append([])
                room = self.images
            windows[-1].append(torch.arange(ends[shard] - self.sizes[shard], ends[shard]))
            room -= self.sizes[shard]
        if room > 0 and len(windows) > 1:  # the last window is too small: the window before it takes its shards
            incomplete = windows.pop()
            windows[-1] += incomplete
        numbers = [torch.cat(window) for window in windows]
        return torch.cat([window[torch.randperm(len(window), generator=stream)] for window in numbers])


@dataclass(eq=False)
class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Yields this rank's piece of each batch of an epoch, as a list of (epoch, image number).

    Every rank draws the same order, a new one for each epoch, cuts it into batches of ``batch_size`` images, and takes
    its ``share`` of each batch. Each image is in exactly one batch, independent of the number of ranks, and all ranks
    have the same number of batches. A rank's piece of an incomplete last batch may be empty. Each key contains the
    epoch, because workers that continue into the next epoch need it for the augmentation.

    drop_last: whether to leave out an incomplete last batch, which has other images in each epoch. A data set smaller
    than one batch keeps it. windows: how to shuffle; by default, all images are shuffled together.
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
        """The number of images that are taken by the end of the epoch's last batch, including the skipped images."""
        whole = self.drop_last and self.num_images >= self.batch_size
        return self.num_images - ((self.num_images - self.skip) % self.batch_size if whole else 0)

    @property
    def epoch_steps(self) -> int:
        """The number of batches of an epoch from which no image is skipped."""
        whole, rest = divmod(self.num_images, self.batch_size)
        return whole + bool(rest and not (whole and self.drop_last))

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Set the epoch, and begin it after the first ``skip`` images of its order."""
        if not 0 <= skip <= self.num_images:
            raise ValueError(f"cannot skip {skip} of {self.num_images} images")
        self.epoch, self.skip = epoch, skip

    def taken(self, batches: int) -> int:
        """Return how many images all ranks have taken after this many batches, including the first ``skip`` images."""
        return min(self.skip + batches * self.batch_size, self.epoch_images)

    def __len__(self) -> int:
        return -(-(self.epoch_images - self.skip) // self.batch_size)

    def order(self) -> Tensor:
        """Return the image numbers of the epoch, in order, after the first ``skip``: (epoch_images - skip,) int64."""
        if not self.shuffle:
            return torch.arange(self.skip, self.epoch_images)
        stream = generator(self.seed, "order", self.epoch)
        order = self.windows.order(stream) if self.windows else torch.randperm(self.num_images, generator=stream)
        return order[self.skip : self.epoch_images]

    def pieces(self) -> Iterator[Tensor]:
        """Return the numbers of this rank's images in each remaining batch."""
        order, size = self.order(), self.batch_size
        batches = (order[start : start + size] for start in range(0, len(order), size))
        return (batch[self.share.of(len(batch))] for batch in batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, number) for number in piece.tolist()] for piece in self.pieces())
