"""The base class of all loaders, and the normalisation of their images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isonet.data.random_streams import EpochBatches

Batch = tuple[Tensor, Tensor]


class Normalise:
    """Converts uint8 (N, H, W, 3) on any device to float32 (N, 3, H, W) on ``device``: ``(pixel / 255 - mean) / std``.

    channels_last: whether to leave the result in NHWC order in memory, which costs nothing.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device, channels_last: bool) -> None:
        self.device = device
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)  # (3,)
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.device, non_blocking=True)  # a quarter of the bytes of float32
        width = pixels.shape[2]
        # Whole rows, because with 3 channels as the last axis a CPU computes only 3 numbers at a time
        rows = pixels.flatten(2).to(torch.float32)  # (N, H, 3 W)
        images = rows.div_(255).sub_(self.mean.repeat(width)).div_(self.std.repeat(width)).unflatten(2, (width, 3))
        return images.permute(0, 3, 1, 2).contiguous(memory_format=self.format)


@dataclass(eq=False)
class Loader:
    """Yields batches of (images, labels): float32 (N, 3, H, W), normalised, and int64 (N,), on ``normalise.device``.

    Each rank yields its piece of every batch, which may be empty. In training, the pieces of a batch together have
    exactly ``batches.batch_size`` images, or fewer in an incomplete last batch without SOLVER.DROP_LAST. In evaluation
    with DATASET.ON_ERROR skip, the pieces lack the images that cannot be read.

    classes: names of the labels. skipped: the reason for each image that could not be read, by its path. taken: the
    number of images of the epoch's order, over all ranks, up to the batch that was yielded last.
    """

    classes: Sequence[str]
    batches: EpochBatches
    normalise: Normalise
    skipped: dict[str, str]
    taken: int = 0

    @property
    def num_images(self) -> int:
        """The number of images of the data set."""
        return self.batches.num_images

    @property
    def epoch_images(self) -> int:
        """The value of ``taken`` after the last batch of the epoch."""
        return self.batches.epoch_images

    @property
    def epoch_steps(self) -> int:
        """The number of batches in a whole epoch."""
        return self.batches.epoch_steps

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Set the epoch, counted from 1, which determines the order and the augmentation.

        skip: the number of images at the beginning of the epoch's order that were taken before an interruption. If they
        make whole batches, the remaining batches are bit-identical to those batches of an uninterrupted epoch.
        """
        self.batches.set_epoch(epoch, skip)
        self.taken = skip

    def __len__(self) -> int:
        """The number of batches of the epoch after the first ``skip`` images, the same on all ranks."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError
