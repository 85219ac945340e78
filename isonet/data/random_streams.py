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
    """

    def __init__(self, num_images: int, shuffle: bool, seed: int) -> None:
        self.num_images = num_images
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def order(self) -> Tensor:
        """Image indices of the current epoch: (num_images,) int64."""
        if not self.shuffle:
            return torch.arange(self.num_images)
        return torch.randperm(self.num_images, generator=generator(self.seed, "order", self.epoch))

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in self.order().tolist())
