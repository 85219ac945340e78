"""From a config to a loader."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from torchvision import transforms
from torchvision.transforms import InterpolationMode
from tqdm import tqdm
from yacs.config import CfgNode

from isonet.config import image_size, uses_small_images
from isonet.data.memory import Batch, CropFlip, MemoryLoader
from isonet.data.sources import ImageSource, cifar, digits, image_folder
from isonet.data.workers import WorkerLoader, decode_all
from isonet.errors import DataError

log = logging.getLogger("isonet")

MEMORY_LIMIT = 4 << 30  # bytes of decoded images; a larger set is read by workers
EVAL_RESIZE = 256 / 224  # shorter side before the centre crop, over the crop

_CIFAR_STATS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DIGITS_STATS = ((0.305, 0.305, 0.305), (0.376, 0.376, 0.376))  # of the 1,437 training images


class Loader(Protocol):
    """Batches of (images, labels), each image once an epoch: float32 (N, 3, H, W), normalised, and int64 (N,)."""

    classes: Sequence[str]

    @property
    def num_images(self) -> int: ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 1, whose order and augmentation come next."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


def build_loader(cfg: CfgNode, split: str, num_gpus: int = 1, classes: Sequence[str] | None = None) -> Loader:
    """The loader of ``split``, "train" (shuffled, augmented) or "val", for the data set that ``cfg`` names.

    Batches hold the config's images per GPU times ``num_gpus``. ``classes`` gives the order of labels
    where an image folder has no training part to tell it. Raises ``DataError`` for a data set that is
    missing, unreadable, or has more classes than ``DATASET.NUM_CLASSES``.
    """
    train = split == "train"
    source = build_source(cfg, split, classes)
    _check_classes(cfg, source, split)
    size = image_size(cfg)
    mean, std = statistics(cfg)
    batch_size = (cfg.SOLVER.TRAIN_BATCH_SIZE if train else cfg.SOLVER.TEST_BATCH_SIZE) * num_gpus
    augment = CropFlip(padding=size // 8, flip=cfg.DATASET.NAME != "digits") if train else None

    small = uses_small_images(cfg)
    if small and len(source.labels) * size * size * 3 <= MEMORY_LIMIT:
        progress = functools.partial(tqdm, desc=f"decoding {split}", leave=False, disable=not sys.stderr.isatty())
        images = decode_all(source, _to_square(size), size, _num_workers(cfg), progress)
        return MemoryLoader(
            images, source.labels, source.classes, batch_size, mean, std, augment, shuffle=train, seed=cfg.RUNTIME.SEED
        )
    transform = transforms.Compose(
        [*_image_transforms(size, small, augment), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    return WorkerLoader(
        source, transform, batch_size, shuffle=train, seed=cfg.RUNTIME.SEED, num_workers=_num_workers(cfg)
    )


def build_source(cfg: CfgNode, split: str, classes: Sequence[str] | None = None) -> ImageSource:
    """The labelled images of ``split`` for the data set that ``cfg`` names."""
    root, name = Path(cfg.DATASET.ROOT), cfg.DATASET.NAME
    if name == "digits":
        return digits(split)
    if name in ("CIFAR10", "CIFAR100"):
        return cifar(name, root, split, cfg.DATASET.DOWNLOAD)
    return image_folder(root / name, split, classes)


def statistics(cfg: CfgNode) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation per channel, of pixels in [0, 1]."""
    if cfg.DATASET.NAME == "digits":
        mean, std = _DIGITS_STATS
    else:
        mean, std = _CIFAR_STATS if uses_small_images(cfg) else _IMAGENET_STATS
    return tuple(cfg.DATASET.MEAN) or mean, tuple(cfg.DATASET.STD) or std


def _num_workers(cfg: CfgNode) -> int:
    """Workers beyond the number of CPU cores only get into each other's way."""
    return min(cfg.DATASET.NUM_WORKERS, os.cpu_count() or 1)


def _check_classes(cfg: CfgNode, source: ImageSource, split: str) -> None:
    found, expected = len(source.classes), cfg.DATASET.NUM_CLASSES
    where = Path(cfg.DATASET.ROOT) / cfg.DATASET.NAME / split
    if found > expected:
        raise DataError(f"{where}: {found} classes, but DATASET.NUM_CLASSES is {expected}; set it to {found}")
    if found < expected:
        log.warning("%s: %d classes for a network of %d: labels count from 0 in sorted order", where, found, expected)


def _to_square(size: int) -> transforms.Compose:
    """Resize the shorter side and cut out the centre; leaves an image of the right size as it is."""
    return transforms.Compose([transforms.Resize(size, InterpolationMode.BILINEAR), transforms.CenterCrop(size)])


def _image_transforms(size: int, small: bool, augment: CropFlip | None) -> list:
    flip = [transforms.RandomHorizontalFlip()] if augment and augment.flip else []
    if small:
        crop = [transforms.RandomCrop(size, augment.padding)] if augment else []
        return [_to_square(size), *crop, *flip]
    if augment:
        return [transforms.RandomResizedCrop(size), *flip]
    return [transforms.Resize(round(size * EVAL_RESIZE)), transforms.CenterCrop(size)]
