"""Reads images in worker processes: large images when they are needed, small images all before the first epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from isonet.data.augment import Augment
from isonet.data.faults import TRIES, ImageError, OnError, Unreadable
from isonet.data.loader import Batch, Loader, Normalise
from isonet.data.memory import Decoded
from isonet.data.processes import explain_dead_workers, outlive_stop_signals, starting_workers, worker_context
from isonet.data.random_streams import EpochBatches
from isonet.data.sources import ArraySource, ImageSource
from isonet.errors import DataError

DECODED_AT_A_TIME = 16  # images; more need more memory and are not faster
WORTH_WORKERS = 5000  # images; decoding fewer takes less time than starting worker processes

Item = tuple[Tensor | None, int, int, list[DataError]]  # pixels, number asked for, number read, errors


class ReadBatch(NamedTuple):
    """The images of a batch that could be read.

    pixels: uint8 (n, H, W, 3). numbers: the numbers of the images that were asked for, int64 (n,). read: the numbers of
    the images that were read for them. errors: the errors of all images that could not be read. unread: the number of
    missing images.
    """

    pixels: Tensor
    numbers: Tensor
    read: Tensor
    errors: list[DataError]
    unread: int


@dataclass(frozen=True)
class SourceImages(Dataset):
    """Augmented images of a source, indexed by (epoch, number). Each image is a square of ``size`` pixels a side.

    By default, an image that cannot be read is missing. With "replace", the next readable image takes its place, with
    its own label and with the augmentation of the unreadable image. At most ``TRIES`` images are tried.

    as_tensor: whether to decode with torchvision.
    """

    source: ImageSource
    augment: Augment
    size: int
    as_tensor: bool = False
    on_error: OnError = "stop"

    def __getitem__(self, key: tuple[int, int]) -> Item:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Item]:
        """Return the images of a batch.

        Several images are decoded one after the other, and then all of them are augmented. Alternating is slower,
        because the code of one overwrites the other's in the caches of the processor.
        """
        items: list[Item] = []
        for start in range(0, len(keys), DECODED_AT_A_TIME):
            some = keys[start : start + DECODED_AT_A_TIME]
            for (epoch, number), (image, place, errors) in zip(some, [self._read(n) for _, n in some], strict=True):
                items.append((None if image is None else self.augment(image, epoch, number), number, place, errors))
        return items

    def _read(self, number: int) -> tuple[Any, int, list[DataError]]:
        """Return an image or None, its number, and the errors of the images that could not be read."""
        read = self.source.read_tensor if self.as_tensor else self.source.read
        count = len(self.source.labels)
        errors: list[DataError] = []
        tries = min(TRIES, count) if self.on_error == "replace" else 1
        for place in ((number + i) % count for i in range(tries)):
            try:
                return read(place), place, errors
            except DataError as error:
                errors.append(error)
                if not isinstance(error, ImageError):
                    break
        return None, number, errors

    def collate(self, items: list[Item]) -> ReadBatch:
        """Make a batch of the images that could be read. The batch may be empty."""
        good = [item[:3] for item in items if item[0] is not None]
        errors = [error for item in items for error in item[3]]
        pixels, numbers = torch.empty(0, self.size, self.size, 3, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
        read = numbers
        if good:
            pixels, numbers, read = default_collate(good)
        return ReadBatch(pixels, numbers, read, errors, len(items) - len(good))


class ImageBatches(DataLoader):
    """Yields a ``ReadBatch`` for each of ``batches``. The workers ignore the signals that stop a run."""

    def __init__(self, images: SourceImages, batches: EpochBatches, num_workers: int, **options: Any) -> None:
        super().__init__(
            images,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=images.collate,
            worker_init_fn=outlive_stop_signals,
            multiprocessing_context=worker_context() if num_workers else None,
            generator=torch.Generator(),  # without it, each epoch draws a worker seed from the global generator
            **options,
        )

    def __iter__(self) -> Any:
        with explain_dead_workers():
            with starting_workers():
                batches = super().__iter__()
            yield from batches


class WorkerLoader(Loader):
    """A ``Loader`` that reads and augments images in worker processes, or in this process if ``num_workers`` is 0."""

    def __init__(self, images: SourceImages, batches: EpochBatches, normalise: Normalise, num_workers: int) -> None:
        self.unreadable = Unreadable(images.on_error)
        super().__init__(images.source.classes, batches, normalise, self.unreadable.skipped)
        self.labels = torch.as_tensor(images.source.labels)
        on_gpu = normalise.device.type == "cuda"
        self.reader = ImageBatches(images, batches, num_workers, pin_memory=on_gpu, persistent_workers=num_workers > 0)

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.reader, start=1):
            self.unreadable.note(batch.errors, len(batch.read), batch.unread)
            self.taken = self.batches.taken(number)  # does not count what the workers have read ahead
            labels = self.labels[batch.read]
            if self.reader.pin_memory:  # or copying them would wait for the device
                labels = labels.pin_memory()
            yield self.normalise(batch.pixels), labels.to(self.normalise.device, non_blocking=True)


def decode_all(images: SourceImages, num_workers: int) -> Decoded:
    """Decode every image of a source. Raises the same errors as ``Unreadable``."""
    source, size, count = images.source, images.size, len(images.source.labels)
    labels = torch.as_tensor(source.labels)
    if isinstance(source, ArraySource) and source.images.shape[1:3] == (size, size):
        return Decoded(torch.from_numpy(source.images), labels, source.classes)
    pixels = torch.zeros(count, size, size, 3, dtype=torch.uint8)
    read, readable = torch.zeros_like(labels), torch.zeros(count, dtype=torch.bool)
    batches = EpochBatches(count, 500, shuffle=False, seed=0)
    unreadable = Unreadable(images.on_error)
    reader = ImageBatches(images, batches, num_workers if count >= WORTH_WORKERS else 0)
    for batch in tqdm(reader, "decoding images", leave=False, disable=None):  # shown on a terminal only
        unreadable.note(batch.errors, len(batch.read), batch.unread)
        pixels[batch.numbers], read[batch.numbers], readable[batch.numbers] = batch.pixels, batch.read, True
    return Decoded(pixels, labels[read], source.classes, None if readable.all() else readable, unreadable.skipped)
