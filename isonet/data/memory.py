"""A loader of small images, which are decoded once, kept as bytes on the device, and augmented there in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from isonet.data.loader import Batch, Loader, Normalise
from isonet.data.random_streams import EpochBatches, generator


@dataclass(frozen=True)
class CropFlip:
    """A random crop of an image padded by ``padding`` black pixels, and a horizontal flip with probability 1/2."""

    padding: int
    flip: bool


@dataclass(frozen=True)
class Decoded:
    """All images of a source: uint8 (N, H, W, 3). labels: int64 (N,), positions in ``classes``.

    readable: bool (N,), False for each unreadable image, which is black and is left out; None if all images were read.
    skipped: the reason for each image that could not be read, by its path.
    """

    images: Tensor
    labels: Tensor
    classes: Sequence[str]
    readable: Tensor | None = None
    skipped: dict[str, str] = field(default_factory=dict)


class MemoryLoader(Loader):
    """A ``Loader`` of decoded images. The crop and flip of an image depend only on seed, epoch and image number."""

    def __init__(self, decoded: Decoded, batches: EpochBatches, normalise: Normalise, augment: CropFlip | None) -> None:
        super().__init__(decoded.classes, batches, normalise, decoded.skipped)
        self.device = normalise.device
        self.labels = decoded.labels.to(self.device)
        self.readable = decoded.readable
        self.augment = augment
        images = decoded.images
        self.height, self.width = images.shape[1:3]
        p = augment.padding if augment else 0
        # Pad with black before the mean is subtracted, like torchvision's RandomCrop. A fourth channel makes each pixel
        # one number of 4 bytes, which is copied in one operation
        self.pixels = F.pad(images, (0, 1, p, p, p, p)).to(self.device).view(torch.int32).flatten()
        self.padded = self.height + 2 * p, self.width + 2 * p

    def __iter__(self) -> Iterator[Batch]:
        crops = self._draw_crops().to(self.device)
        pieces = [*self.batches.pieces()]
        if self.readable is not None:
            pieces = [piece[self.readable[piece]] for piece in pieces]
        indices = torch.cat([torch.empty(0, dtype=torch.int64), *pieces]).to(self.device)  # one copy to the device
        for number, index in enumerate(indices.split([len(piece) for piece in pieces]), start=1):
            self.taken = self.batches.taken(number)
            yield self.normalise(self._crop(index, crops[index])), self.labels[index]

    def _draw_crops(self) -> Tensor:
        """Return the top, the left and the flip (0 or 1) of each image of the data set: (N, 3) int64."""
        if self.augment is None:
            return torch.zeros(self.num_images, 3, dtype=torch.int64)
        rng = generator(self.batches.seed, "augment", self.batches.epoch)
        corner = torch.randint(2 * self.augment.padding + 1, (self.num_images, 2), generator=rng)
        flip = torch.randint(2, (self.num_images, 1), generator=rng) * int(self.augment.flip)
        return torch.cat([corner, flip], dim=1)

    def _crop(self, index: Tensor, crops: Tensor) -> Tensor:
        """Return the crops of the images ``index`` (n,) that ``crops`` (n, 3) describes: uint8 (n, H, W, 3)."""
        height, width = self.padded
        top, left, flip = crops[:, :, None].unbind(1)  # (n, 1)
        columns = torch.arange(self.width, device=self.device)
        columns = left + torch.where(flip == 1, self.width - 1 - columns, columns)  # (n, W)
        rows = top + torch.arange(self.height, device=self.device)  # (n, H)
        first = (index[:, None] * height + rows) * width  # position of each row in the flat list of pixels
        place = first[:, :, None] + columns[:, None, :]
        return self.pixels[place].view(torch.uint8).unflatten(2, (self.width, 4))[..., :3]
