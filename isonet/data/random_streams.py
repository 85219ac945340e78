"""Random streams that depend on seed, epoch and image alone, not on workers, processes or what ran before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed for the stream that ``parts`` name; unlike sums, no two names share one."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator for the stream that ``parts`` name."""
    return torch.Generator().manual_seed(stream_seed(*parts))


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, image index) for every image once, in an order drawn anew for each epoch.

    The epoch travels with the index, so that workers which outlive an epoch augment for the right one.
    An epoch that was interrupted goes on after the first ``skip`` images of its order.
    """

    def __init__(self, num_images: int, shuffle: bool, seed: int) -> None:
        self.num_images = num_images
        self.shuffle = shuffle
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        if not 0 <= skip <= self.num_images:
            raise ValueError(f"cannot skip {skip} of {self.num_images} images")
        self.epoch, self.skip = epoch, skip

    def order(self) -> Tensor:
        """Indices of the images of the current epoch that are to come: (num_images - skip,) int64."""
        if not self.shuffle:
            return torch.arange(self.skip, self.num_images)
        return torch.randperm(self.num_images, generator=generator(self.seed, "order", self.epoch))[self.skip :]

    def __len__(self) -> int:
        return self.num_images - self.skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in self.order().tolist())
