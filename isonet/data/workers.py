"""Reads images in worker processes: large images as they are needed, small ones all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from isonet.data.augment import Augment, Transform
from isonet.data.faults import WHOLE_BATCH, ImageError, OnError, Unreadable, storage_gone
from isonet.data.loader import Batch, Loader
from isonet.data.memory import Decoded
from isonet.data.pixels import Normalise
from isonet.data.processes import explain_dead_workers, held_stop_signals, outlive_stop_signals, remember_workers
from isonet.data.random_streams import EpochBatches
from isonet.data.sources import ArraySource, ImageSource, Labels
from isonet.errors import DataError

WORTH_WORKERS = 5000  # images; fewer are decoded before worker processes have started

Item = tuple[Tensor | None, int, list[DataError]]  # pixels, label, errors on the way to them


class SourceImages(Dataset):
    """Images of a source by (epoch, index): augmented pixels, uint8 (H, W, 3), with a label and errors.

    If an image cannot be read, its pixels are None or, with "replace", those of the next image that can be read, with
    that image's label, and augmented as the first image would have been; at most ``WHOLE_BATCH`` images are tried.

    as_tensor: decode with torchvision. labels: by default the source's.
    """

    def __init__(
        self,
        source: ImageSource,
        augment: Augment,
        as_tensor: bool = False,
        on_error: OnError = "stop",
        labels: Labels | None = None,
    ) -> None:
        self.read = source.read_tensor if as_tensor else source.read
        self.augment = augment
        self.labels = source.labels if labels is None else labels
        self.tries = min(WHOLE_BATCH, len(self.labels)) if on_error == "replace" else 1

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        errors: list[DataError] = []
        for place in ((index + i) % len(self.labels) for i in range(self.tries)):
            try:
                image = self.read(place)
            except DataError as error:
                errors.append(error)
                if not isinstance(error, ImageError):
                    break
            else:
                return self.augment(image, epoch, index), int(self.labels[place]), errors
        return None, 0, errors


class ImageBatches(DataLoader):
    """Yields ((pixels, labels) of the images that could be read, or None; errors; number of images asked for).

    Its workers outlive the signals that stop a run.
    """

    def __init__(self, images: SourceImages, batches: EpochBatches, num_workers: int, **options: Any) -> None:
        super().__init__(
            images,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_collate,
            worker_init_fn=outlive_stop_signals,
            generator=torch.Generator(),  # else each epoch would draw a worker seed from the global generator
            **options,
        )

    def __iter__(self) -> Any:
        with held_stop_signals():  # until the workers that start here ignore them
            batches = super().__iter__()
        remember_workers()
        return batches


def _collate(items: list[Item]) -> tuple[Any, list[DataError], int]:
    read = [(pixels, label) for pixels, label, _ in items if pixels is not None]
    return default_collate(read) if read else None, [e for _, _, errors in items for e in errors], len(items)


class WorkerLoader(Loader):
    """A ``Loader`` that reads the images in worker processes, or in this one with ``num_workers`` 0.

    Workers read and augment; they pass bytes on. size: side of the square images in pixels.
    """

    def __init__(
        self,
        source: ImageSource,
        batches: EpochBatches,
        augment: Augment,
        size: int,
        normalise: Normalise,
        num_workers: int,
        as_tensor: bool = False,
        on_error: OnError = "stop",
    ) -> None:
        self.unreadable = Unreadable(on_error)
        super().__init__(source.classes, batches, normalise, self.unreadable.skipped)
        self.nothing = torch.empty(0, size, size, 3, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
        self.reader = ImageBatches(
            SourceImages(source, augment, as_tensor, on_error),
            batches,
            num_workers,
            pin_memory=normalise.device.type == "cuda",
            persistent_workers=num_workers > 0,
        )

    def __iter__(self) -> Iterator[Batch]:
        with explain_dead_workers():
            for number, (batch, errors, asked) in enumerate(self.reader, start=1):
                pixels, labels = batch or self.nothing
                self.unreadable.note(errors, asked, len(labels))
                self.taken = self.batches.taken(number)  # not what the workers have read ahead
                yield self.normalise(pixels), labels.to(self.normalise.device, non_blocking=True)


def decode_all(
    source: ImageSource,
    resize: Transform,
    size: int,
    num_workers: int,
    progress: Callable[[DataLoader], Iterable] = iter,
    on_error: OnError = "stop",
) -> Decoded:
    """Decode every image of ``source``.

    resize: makes an image square, ``size`` pixels wide. With "replace", an image that cannot be read is replaced by the
    next one that can, label included. Raises ``DataError`` like ``Unreadable``.
    """
    count = len(source.labels)
    labels = torch.tensor(source.labels)
    if isinstance(source, ArraySource) and source.images.shape[1:3] == (size, size):
        return Decoded(torch.from_numpy(source.images), labels)
    images, readable = torch.zeros(count, size, size, 3, dtype=torch.uint8), torch.zeros(count, dtype=torch.bool)
    reader = ImageBatches(
        SourceImages(source, Augment(resize, seed=0), labels=range(count)),  # an index in place of a label
        EpochBatches(count, 500, shuffle=False, seed=0),
        num_workers if count >= WORTH_WORKERS else 0,
    )
    unreadable = Unreadable("stop" if on_error == "stop" else "leave out")  # replaced below, from memory
    with explain_dead_workers():
        for batch, errors, asked in progress(reader):
            unreadable.note(errors, asked, asked - len(errors))
            if batch:
                pixels, indices = batch
                images[indices], readable[indices] = pixels, True
    if on_error == "replace":
        for index in (~readable).nonzero().flatten().tolist():
            nearby = [(index + i) % count for i in range(1, WHOLE_BATCH)]
            nearest = next((place for place in nearby if readable[place]), None)
            if nearest is None:
                raise storage_gone(next(iter(unreadable.skipped)))
            images[index], labels[index] = images[nearest], labels[nearest]
        return Decoded(images, labels, skipped=unreadable.skipped)
    return Decoded(images, labels, readable, unreadable.skipped)
