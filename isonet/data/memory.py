"""Small images: decoded once, kept as bytes, augmented a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from isonet.data.random_streams import EpochSampler, generator

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class CropFlip:
    """Random crop out of an image framed by ``padding`` black pixels, and a horizontal flip in half of the cases."""

    padding: int
    flip: bool


class MemoryLoader:
    """Batches of (images, labels): float32 (N, 3, H, W), normalised, and int64 (N,).

    Each image's crop and flip in an epoch follow from the seed, the epoch and the image alone.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Sequence[int],
        classes: Sequence[str],
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: CropFlip | None,
        shuffle: bool,
        seed: int,
    ) -> None:
        self.labels = torch.tensor(labels)
        self.classes = classes
        self.batch_size = batch_size
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self.augment = augment
        self.sampler = EpochSampler(len(labels), shuffle, seed)
        self.height, self.width = images.shape[1:3]
        if augment:  # a black frame, like torchvision's RandomCrop, and so before the mean is taken off
            p = augment.padding
            images = F.pad(images, (0, 0, p, p, p, p))
        self.images = images  # uint8 (N, H + 2p, W + 2p, 3)

    @property
    def num_images(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        crops = self._draw_crops()
        for index in self.sampler.order().split(self.batch_size):
            images = self._crop(index, crops[index]) if crops is not None else self.images[index]
            yield self._normalise(images), self.labels[index]

    def _draw_crops(self) -> Tensor | None:
        """For each image of the set its crop's top, its left, and whether it is flipped: (N, 3) int64."""
        if self.augment is None:
            return None
        rng = generator(self.sampler.seed, "augment", self.sampler.epoch)
        corner = torch.randint(2 * self.augment.padding + 1, (self.num_images, 2), generator=rng)
        flip = torch.randint(2, (self.num_images, 1), generator=rng) * int(self.augment.flip)
        return torch.cat([corner, flip], dim=1)

    def _crop(self, index: Tensor, crops: Tensor) -> Tensor:
        top, left, flip = crops.unbind(1)
        rows = top[:, None] + torch.arange(self.height)  # (N, H)
        columns = torch.arange(self.width).expand(len(index), -1)
        columns = left[:, None] + torch.where(flip[:, None] == 1, self.width - 1 - columns, columns)  # (N, W)
        return self.images[index[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _normalise(self, images: Tensor) -> Tensor:
        scaled = images.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)
        return scaled.permute(0, 3, 1, 2).contiguous()
