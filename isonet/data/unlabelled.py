"""Image files without labels: listed from what a user names, and read like validation images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from isonet.config import image_size, uses_small_images
from isonet.data.augment import Augment, image_transforms
from isonet.data.build import kept_in_memory, num_workers, statistics
from isonet.data.faults import ImageError
from isonet.data.folders import FolderSource, images_below
from isonet.data.loader import Normalise
from isonet.data.random_streams import EpochBatches
from isonet.data.workers import ImageBatches, SourceImages
from isonet.errors import DataError, printable

_WORTH_WORKERS = 200  # images; fewer are read before worker processes have started


@dataclass(frozen=True)
class FileBatch:
    """images: of the files ``paths``, float32 (N, 3, H, W), normalised. failures: files that could not be read."""

    images: Tensor
    paths: list[Path]
    failures: list[ImageError]


def find_images(places: Iterable[str]) -> tuple[list[Path], list[str]]:
    """List the files as they are named and the images below each folder, sorted by path; and what is wrong, in words.

    A file may have any name; below a folder, files with the extension of an image count, except hidden ones. Whether
    a file can be read shows when it is read.
    """
    paths: list[Path] = []
    problems = []
    for place in map(Path, places):
        try:
            if os.path.isdir(place):
                paths += images_below(place)
            elif os.path.isfile(place) or (not os.path.exists(place) and os.path.islink(place)):
                paths.append(place)
            else:  # reading a pipe could wait for ever
                problems.append(f"{printable(place)}: no such file or folder, or a pipe, a socket or a device")
        except DataError as error:
            problems.append(str(error))
    return paths, problems


def read_batches(cfg: CfgNode, paths: Sequence[Path], batch_size: int, device: torch.device) -> Iterator[FileBatch]:
    """Yield the images of ``paths`` in their order, on ``device``, preprocessed like the validation images of ``cfg``.

    Worker processes read them if there are many. Raises ``DataError`` if an image is not to blame for not being read.
    """
    size = image_size(cfg)
    normalise = Normalise(*statistics(cfg), device, cfg.RUNTIME.CHANNELS_LAST)
    augment = Augment(image_transforms(size, uses_small_images(cfg), None), cfg.RUNTIME.SEED)
    as_tensor = cfg.RUNTIME.DECODER == "torch" and not kept_in_memory(cfg, len(paths))  # as decode_all has one decoder
    images = SourceImages(FolderSource(paths, range(len(paths)), ()), augment, size, as_tensor)
    batches = EpochBatches(len(paths), batch_size, shuffle=False, seed=0)
    workers = num_workers(cfg) if len(paths) >= _WORTH_WORKERS else 0
    for batch in ImageBatches(images, batches, workers, pin_memory=device.type == "cuda"):
        failures = [error for error in batch.errors if isinstance(error, ImageError)]
        if len(failures) < len(batch.errors):
            raise DataError(str(next(error for error in batch.errors if error not in failures)))
        yield FileBatch(normalise(batch.pixels), [paths[number] for number in batch.numbers.tolist()], failures)
