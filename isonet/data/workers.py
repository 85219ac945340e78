"""Reading images in worker processes: large ones as they are needed, small ones all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from isonet.data.memory import Batch
from isonet.data.pixels import Normalise
from isonet.data.random_streams import EpochSampler, stream_seed
from isonet.data.sources import ArraySource, ImageSource
from isonet.errors import DataError

_WORTH_WORKERS = 5000  # images; fewer are decoded before worker processes have started


Transform = Callable[[Any], Image.Image | Tensor]


@dataclass(frozen=True)
class _Failure:
    """An image that could not be read, on its way from a worker to the process that reports it."""

    message: str


class _AugmentedImages(Dataset):
    """Images by (epoch, index) as bytes, each augmented from a random stream of its own."""

    def __init__(self, source: ImageSource, transform: Transform, seed: int, as_tensor: bool) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.read = source.read_tensor if as_tensor else source.read

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | _Failure:
        epoch, index = key
        try:
            image = self.read(index)
        except DataError as error:
            return _Failure(str(error))
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from the global generator
            # Not torch.manual_seed, which would seed every GPU as well
            torch.default_generator.manual_seed(stream_seed(self.seed, "augment", epoch, index))
            return _bytes(self.transform(image)), self.source.labels[index]


def _bytes(image: Image.Image | Tensor) -> Tensor:
    """uint8 (H, W, 3)"""
    return image.permute(1, 2, 0).contiguous() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))


def _collate(items: list) -> list | Tensor | _Failure:
    failure = next((item for item in items if isinstance(item, _Failure)), None)
    return failure or default_collate(items)


class WorkerLoader:
    """Batches of (images, labels) on the device of ``normalise``: float32 (N, 3, H, W), normalised, and int64 (N,).

    Processes read and augment; what they hand over is bytes. transform: an image to one of the batch's
    size, PIL or, ``as_tensor``, uint8 (3, H, W).
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        normalise: Normalise,
        batch_size: int,
        shuffle: bool,
        seed: int,
        num_workers: int,
        as_tensor: bool = False,
    ) -> None:
        self.normalise = normalise
        self.classes: Sequence[str] = source.classes
        self.num_images = len(source.labels)
        self.sampler = EpochSampler(self.num_images, shuffle, seed)
        self._batches = DataLoader(
            _AugmentedImages(source, transform, seed, as_tensor),
            batch_size=batch_size,
            sampler=self.sampler,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=normalise.device.type == "cuda",
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # else each epoch would draw a worker seed from the global one
        )

    def set_epoch(self, epoch: int) -> None:
        self.sampler.epoch = epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for pixels, labels in _unless_failed(self._batches):
            yield self.normalise(pixels), labels.to(self.normalise.device, non_blocking=True)


class _Pixels(Dataset):
    """Images as bytes: uint8 (size, size, 3)."""

    def __init__(self, source: ImageSource, resize: Callable[[Image.Image], Image.Image]) -> None:
        self.source = source
        self.resize = resize

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> Tensor | _Failure:
        try:
            image = self.source.read(index)
        except DataError as error:
            return _Failure(str(error))
        return _bytes(self.resize(image))


def decode_all(
    source: ImageSource,
    resize: Callable[[Image.Image], Image.Image],
    size: int,
    num_workers: int,
    progress: Callable[[DataLoader], Iterable],
) -> Tensor:
    """Every image of ``source`` as bytes: uint8 (N, size, size, 3)."""
    if isinstance(source, ArraySource) and source.images.shape[1:3] == (size, size):
        return torch.from_numpy(source.images)
    few = len(source.labels) < _WORTH_WORKERS
    batches = DataLoader(
        _Pixels(source, resize), batch_size=500, num_workers=0 if few else num_workers, collate_fn=_collate
    )
    return torch.cat(list(_unless_failed(progress(batches))))


def _unless_failed(batches: Iterable) -> Iterator:
    """The batches, up to one that reports an image that could not be read, which becomes a ``DataError``."""
    for batch in batches:
        if isinstance(batch, _Failure):
            raise DataError(batch.message)
        yield batch
