"""Reading images in worker processes: large ones as they are needed, small ones all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from isonet.data.faults import Failure, LeftOut, failure
from isonet.data.memory import Batch
from isonet.data.pixels import Normalise
from isonet.data.processes import explain_dead_workers, held_stop_signals, outlive_stop_signals, remember_workers
from isonet.data.random_streams import Epochs, stream_seed
from isonet.data.sources import ArraySource, ImageSource
from isonet.errors import DataError

__all__ = ["Augment", "SourceImages", "WorkerLoader", "decode_all", "explain_dead_workers"]

_WORTH_WORKERS = 5000  # images; fewer are decoded before worker processes have started


Transform = Callable[[Any], Image.Image | Tensor]


class ImageBatches(DataLoader):
    """What ``_collate`` makes of the items, read by workers that outlive the signals which stop a run."""

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, collate_fn=_collate, worker_init_fn=outlive_stop_signals, **options)

    def __iter__(self) -> Any:
        with held_stop_signals():  # until the workers that start here have learned to outlive them
            batches = super().__iter__()
        remember_workers()
        return batches


def _collate(items: list) -> tuple[Any, list[Failure]]:
    """The items of a batch that could be read, collated, or None if none could; and the failures."""
    failures = [item for item in items if isinstance(item, Failure)]
    found = [item for item in items if not isinstance(item, Failure)] if failures else items
    return default_collate(found) if found else None, failures


class Augment:
    """Applies ``transform`` to an image, from a random stream of the image's own in each epoch.

    transform: an image to a square one, PIL or uint8 (3, H, W).
    """

    def __init__(self, transform: Transform, seed: int) -> None:
        self.transform = transform
        self.seed = seed

    def __call__(self, image: Image.Image | Tensor, epoch: int, index: int) -> Tensor:
        """uint8 (H, W, 3)"""
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from the global generator
            # Not torch.manual_seed, which would seed every GPU as well
            torch.default_generator.manual_seed(stream_seed(self.seed, "augment", epoch, index))
            return _bytes(self.transform(image))


class SourceImages(Dataset):
    """Images of a source by (epoch, index): augmented, as bytes, with the label.

    as_tensor: decode with torchvision.
    """

    def __init__(self, source: ImageSource, augment: Augment, as_tensor: bool) -> None:
        self.source = source
        self.augment = augment
        self.read = source.read_tensor if as_tensor else source.read

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | Failure:
        epoch, index = key
        try:
            image = self.read(index)
        except DataError as error:
            return failure(index, error)
        return self.augment(image, epoch, index), self.source.labels[index]


def _bytes(image: Image.Image | Tensor) -> Tensor:
    """uint8 (H, W, 3)"""
    return image.permute(1, 2, 0).contiguous() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))


class WorkerLoader:
    """Batches of (images, labels) on the device of ``normalise``: float32 (N, 3, H, W), normalised, and int64 (N,).

    Workers read and augment; what they hand over is bytes. images: for each key that ``batches`` yields, the pixels
    of an image, uint8 (``size``, ``size``, 3), and its label, or a ``Failure``. skip: leave out images that cannot
    be read.
    """

    def __init__(
        self,
        images: Dataset,
        batches: Epochs,
        classes: Sequence[str],
        size: int,
        normalise: Normalise,
        num_workers: int,
        skip: bool = False,
    ) -> None:
        self.nothing = torch.empty(0, size, size, 3, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
        self.normalise = normalise
        self.classes = classes
        self.num_images = batches.num_images
        self.batches = batches
        self.layout = batches.layout
        self.taken = 0
        self._left_out = LeftOut(self.num_images, skip)
        self.skipped = self._left_out.skipped
        self._reader = ImageBatches(
            images,
            batch_sampler=batches,
            num_workers=num_workers,
            pin_memory=normalise.device.type == "cuda",
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # else each epoch would draw a worker seed from the global one
        )

    @property
    def epoch_images(self) -> int:
        return self.batches.epoch_images

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.batches.set_epoch(epoch, skip)
        self.taken = self.batches.taken(0)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        with explain_dead_workers():
            for number, (batch, failures) in enumerate(self._reader, start=1):
                pixels, labels = batch or self.nothing
                self._left_out.note(failures, len(failures) + len(labels))
                self.taken = self.batches.taken(number)  # not what the workers have read ahead
                yield self.normalise(pixels), labels.to(self.normalise.device, non_blocking=True)


class _Pixels(Dataset):
    """Images as bytes: uint8 (size, size, 3)."""

    def __init__(self, source: ImageSource, resize: Callable[[Image.Image], Image.Image]) -> None:
        self.source = source
        self.resize = resize

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> Tensor | Failure:
        try:
            image = self.source.read(index)
        except DataError as error:
            return failure(index, error)
        return _bytes(self.resize(image))


def decode_all(
    source: ImageSource,
    resize: Callable[[Image.Image], Image.Image],
    size: int,
    num_workers: int,
    progress: Callable[[DataLoader], Iterable],
    skip: bool = False,
) -> tuple[Tensor, list[Failure]]:
    """Every image of ``source`` as bytes, uint8 (N, size, size, 3); black, to ``skip``, where one cannot be read."""
    if isinstance(source, ArraySource) and source.images.shape[1:3] == (size, size):
        return torch.from_numpy(source.images), []
    count = len(source.labels)
    few = count < _WORTH_WORKERS
    batches = ImageBatches(_Pixels(source, resize), batch_size=500, num_workers=0 if few else num_workers)
    left_out = LeftOut(count, skip)
    images = torch.zeros(count, size, size, 3, dtype=torch.uint8)
    failed: list[Failure] = []
    start = 0
    with explain_dead_workers():
        for pixels, failures in progress(batches):
            end = start + len(failures) + (len(pixels) if pixels is not None else 0)
            left_out.note(failures, end - start)
            failed += failures
            if pixels is not None:
                bad = {failure.index for failure in failures}
                images[[index for index in range(start, end) if index not in bad]] = pixels
            start = end
    return images, failed
