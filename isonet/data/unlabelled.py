"""Image files without labels: found where a user says, and read as evaluation reads its images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from yacs.config import CfgNode

from isonet.data.build import evaluation_images, num_workers, statistics
from isonet.data.faults import Failure
from isonet.data.folders import FolderSource, images_below
from isonet.data.pixels import Normalise
from isonet.data.processes import explain_dead_workers
from isonet.data.random_streams import EpochBatches
from isonet.data.workers import ImageBatches
from isonet.errors import DataError, printable

_WORTH_WORKERS = 200  # images; fewer are read before worker processes have started


@dataclass(frozen=True)
class FileBatch:
    """images: of the files ``paths``, float32 (N, 3, H, W), normalised. failures: files that could not be read."""

    images: Tensor
    paths: list[Path]
    failures: list[Failure]


def find_images(places: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Files as they are named, and of each folder the images at any depth, sorted by path; and what is amiss.

    A file may have any name; of a folder those count whose name ends as an image's does and does not begin
    with a dot. Whether a file can be read is told when it is.
    """
    paths: list[Path] = []
    problems = []
    for place in places:
        if os.path.isdir(place):
            try:
                found = images_below(Path(place))
            except DataError as error:
                problems.append(str(error))
                continue
            except OSError as error:
                problems.append(f"{error.filename or place}: cannot be looked into ({error.strerror})")
                continue
            if not found:
                problems.append(f"{place}: holds no image ({', '.join(IMG_EXTENSIONS)})")
            paths += found
        elif os.path.exists(place) and not os.path.isfile(place):  # reading a pipe would wait for ever
            problems.append(f"{place}: is a pipe, a socket or a device, not a file")
        elif not os.path.lexists(place):
            problems.append(f"{place}: no such file or folder")
        else:
            paths.append(Path(place))
    return paths, list(map(printable, problems))


def read_batches(cfg: CfgNode, paths: Sequence[Path], batch_size: int, device: torch.device) -> Iterator[FileBatch]:
    """The images of ``paths`` in their order, on ``device``, each as the validation images of ``cfg`` are made.

    Many are read by worker processes. Raises ``DataError`` where an image could not be read through no fault
    of its own.
    """
    images = evaluation_images(cfg, FolderSource(paths, range(len(paths)), ()))
    normalise = Normalise(*statistics(cfg), device, cfg.RUNTIME.CHANNELS_LAST)
    reader = ImageBatches(
        images,
        batch_sampler=EpochBatches(len(paths), batch_size, shuffle=False, seed=0),
        num_workers=num_workers(cfg) if len(paths) >= _WORTH_WORKERS else 0,
        pin_memory=device.type == "cuda",
    )
    with explain_dead_workers():
        for batch, failures in reader:
            for failed in failures:
                if not failed.path:
                    raise DataError(failed.message)
            if batch is None:
                yield FileBatch(torch.empty(0, device=device), [], failures)
            else:
                pixels, indices = batch
                yield FileBatch(normalise(pixels), [paths[index] for index in indices.tolist()], failures)
