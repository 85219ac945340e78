"""Random streams that depend on seed, epoch and image alone, not on workers, processes or what ran before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from isonet.shares import WHOLE, Share


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed for the stream that ``parts`` name; unlike sums, no two names share one."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator for the stream that ``parts`` name."""
    return torch.Generator().manual_seed(stream_seed(*parts))


def left_out(num_images: int, batch_size: int, drop_last: bool, skip: int = 0) -> int:
    """How many of ``num_images`` an epoch leaves out, if its batches begin after the first ``skip`` images.

    drop_last: it leaves out an incomplete last batch, unless the whole set is smaller than one batch: then the epoch
    has this batch alone.
    """
    return (num_images - skip) % batch_size if drop_last and num_images >= batch_size else 0


class Epochs(Sampler[list[tuple[int, int]]]):
    """The batches of ``batch_size`` images that an epoch has, over all processes, and where it begins.

    Yields for each batch the keys of this process's piece. The epoch is a part of each key, so that workers
    which outlive an epoch augment for the right one. An epoch that was interrupted goes on after the first
    ``skip`` images of its order. ``left_out`` says what ``drop_last`` does.
    """

    layout = ""  # what the order depends on besides seed and epoch

    def __init__(self, num_images: int, batch_size: int, drop_last: bool = False) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.epoch, self.skip = 0, 0

    @property
    def epoch_images(self) -> int:
        """Images taken by the end of the epoch's last batch, skipped ones included."""
        return self.num_images - left_out(self.num_images, self.batch_size, self.drop_last, self.skip)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        if not 0 <= skip <= self.num_images:
            raise ValueError(f"cannot skip {skip} of {self.num_images} images")
        self.epoch, self.skip = epoch, skip

    def taken(self, batches: int) -> int:
        """Images of the epoch's order, over all processes, after so many batches from ``skip`` on."""
        return min(self.skip + batches * self.batch_size, self.epoch_images)

    def __len__(self) -> int:
        return -(-(self.epoch_images - self.skip) // self.batch_size)


class EpochBatches(Epochs):
    """Yields this process's piece of every batch of an epoch, as a list of (epoch, image index).

    All processes draw the same order, anew for each epoch, cut it into batches of ``batch_size``, and take
    their ``share`` of each. So every image comes once, in a batch that does not depend on the number of
    processes, and all have equally many batches; in an incomplete last one a piece may be empty. With
    ``drop_last``, each epoch leaves out different images.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        share: Share = WHOLE,
        drop_last: bool = False,
    ) -> None:
        super().__init__(num_images, batch_size, drop_last)
        self.shuffle = shuffle
        self.seed = seed
        self.share = share

    def order(self) -> Tensor:
        """Indices of the images of the current epoch that are to come: (epoch_images - skip,) int64."""
        if not self.shuffle:
            return torch.arange(self.skip, self.epoch_images)
        order = torch.randperm(self.num_images, generator=generator(self.seed, "order", self.epoch))
        return order[self.skip : self.epoch_images]

    def pieces(self) -> list[Tensor]:
        """Of each batch to come the indices of this process's images."""
        batches = self.order().split(self.batch_size)[: len(self)]  # of nothing, split makes an empty one
        return [batch[self.share.of(len(batch))] for batch in batches]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, index) for index in piece.tolist()] for piece in self.pieces())
