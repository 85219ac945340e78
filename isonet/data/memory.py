"""Small images: decoded once, kept as bytes on the device, augmented there a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from isonet.data.faults import Failure
from isonet.data.pixels import Normalise
from isonet.data.random_streams import EpochBatches, generator
from isonet.shares import WHOLE, Share

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class CropFlip:
    """Random crop out of an image framed by ``padding`` black pixels, and a horizontal flip in half of the cases."""

    padding: int
    flip: bool


class MemoryLoader:
    """Batches of (images, labels) on the device of ``normalise``: float32 (N, 3, H, W), normalised, and int64 (N,).

    ``images`` are uint8 (N, H, W, 3). Each image's crop and flip in an epoch follow from the seed, the
    epoch and the image alone. batch_size: images of a batch over all processes, of which this one gives its
    ``share``. failures: images that could not be read and are left out of their batches. drop_last: see
    ``EpochBatches``.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Sequence[int],
        classes: Sequence[str],
        batch_size: int,
        normalise: Normalise,
        augment: CropFlip | None,
        shuffle: bool,
        seed: int,
        failures: Sequence[Failure] = (),
        share: Share = WHOLE,
        drop_last: bool = False,
    ) -> None:
        self.device = normalise.device
        self.labels = torch.tensor(labels, device=self.device)
        self.classes = classes
        self.normalise = normalise
        self.augment = augment
        self.layout = ""
        self.batches = EpochBatches(len(labels), batch_size, shuffle, seed, share, drop_last)
        self.taken = 0
        self.skipped = {failed.path: failed.reason for failed in failures}
        self.readable = torch.ones(len(labels), dtype=torch.bool)  # on the CPU, where the order is drawn
        self.readable[[failed.index for failed in failures]] = False
        self.height, self.width = images.shape[1:3]
        p = augment.padding if augment else 0
        # A black frame, like torchvision's RandomCrop, and so before the mean is taken off. A fourth channel
        # makes a pixel one number of 4 bytes, which is moved in one go
        self.pixels = F.pad(images, (0, 1, p, p, p, p)).to(self.device).view(torch.int32).flatten()
        self.framed = self.height + 2 * p, self.width + 2 * p

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def epoch_images(self) -> int:
        return self.batches.epoch_images

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.batches.set_epoch(epoch, skip)
        self.taken = skip

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        crops = self._draw_crops().to(self.device)
        pieces = self.batches.pieces()
        indices = torch.cat([torch.empty(0, dtype=torch.int64), *pieces])
        sizes = [len(piece) for piece in pieces]
        if self.skipped:
            readable = self.readable[indices]
            indices, sizes = indices[readable], [int(part.sum()) for part in readable.split(sizes)]
        for number, index in enumerate(indices.to(self.device).split(sizes), start=1):
            self.taken = self.batches.taken(number)
            yield self.normalise(self._crop(index, crops[index])), self.labels[index]

    def _draw_crops(self) -> Tensor:
        """For each image of the set its crop's top, its left, and whether it is flipped: (N, 3) int64."""
        if self.augment is None:
            return torch.zeros(self.num_images, 3, dtype=torch.int64)
        rng = generator(self.batches.seed, "augment", self.batches.epoch)
        corner = torch.randint(2 * self.augment.padding + 1, (self.num_images, 2), generator=rng)
        flip = torch.randint(2, (self.num_images, 1), generator=rng) * int(self.augment.flip)
        return torch.cat([corner, flip], dim=1)

    def _crop(self, index: Tensor, crops: Tensor) -> Tensor:
        """uint8 (n, H, W, 3): from each image of ``index`` the part that its row of ``crops`` says."""
        height, width = self.framed
        top, left, flip = crops[:, :, None].unbind(1)  # (n, 1)
        columns = torch.arange(self.width, device=self.device)
        columns = left + torch.where(flip == 1, self.width - 1 - columns, columns)  # (n, W)
        rows = top + torch.arange(self.height, device=self.device)  # (n, H)
        first = (index[:, None] * height + rows) * width  # of each row, in the flat list of pixels
        place = first[:, :, None] + columns[:, None, :]
        return self.pixels[place].view(torch.uint8).unflatten(2, (self.width, 4))[..., :3]
