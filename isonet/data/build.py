"""From a config to a loader."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.transforms import v2
from tqdm import tqdm
from yacs.config import CfgNode

from isonet.config import global_batch, image_size, uses_small_images
from isonet.data.folders import check_known
from isonet.data.memory import Batch, CropFlip, MemoryLoader
from isonet.data.pixels import Normalise
from isonet.data.random_streams import EpochBatches
from isonet.data.shards.index import INDEX, read_index, require_webdataset
from isonet.data.shards.order import ShardBatches, ShardOrder
from isonet.data.shards.reader import ShardImages
from isonet.data.sources import ImageSource, cifar, digits, image_folder
from isonet.data.workers import Augment, SourceImages, WorkerLoader, decode_all
from isonet.errors import DataError
from isonet.shares import WHOLE, Share

log = logging.getLogger("isonet")

MEMORY_LIMIT = 4 << 30  # bytes of decoded images; a larger set is read by workers
EVAL_RESIZE = 256 / 224  # shorter side before the centre crop, over the crop

_CIFAR_STATS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DIGITS_STATS = ((0.305, 0.305, 0.305), (0.376, 0.376, 0.376))  # of the 1,437 training images


class Loader(Protocol):
    """Batches of (images, labels): float32 (N, 3, H, W), normalised, and int64 (N,).

    They lie on the first of the loader's devices, in the memory format that the config asks for. Of a run
    of several processes each gets its piece of every batch, which may be an empty one. An epoch has each image
    once, or leaves out those of an incomplete last batch (SOLVER.DROP_LAST).
    """

    classes: Sequence[str]
    skipped: dict[str, str]  # images left out because they could not be read, with DATASET.ON_ERROR skip: path, reason
    layout: str  # what the order of an epoch depends on besides the seed: processes and workers, with shards
    taken: int  # images of the epoch's order, over all processes, up to the latest batch; unreadable ones included

    @property
    def num_images(self) -> int:
        """The images of the set."""

    @property
    def epoch_images(self) -> int:
        """What ``taken`` is after the last batch of the epoch."""

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch, from 1, whose order and augmentation come next.

        skip: the images at the head of its order that were taken before an interruption. After a whole
        number of batches, those that follow are equal to the bit to the rest of an uninterrupted epoch, if
        ``layout`` is the same.
        """

    def __len__(self) -> int:
        """The number of batches of the epoch, from ``skip`` on: on all processes the same."""

    def __iter__(self) -> Iterator[Batch]: ...


def build_loader(
    cfg: CfgNode,
    split: str,
    devices: Sequence[torch.device] = (torch.device("cpu"),),
    classes: Sequence[str] | None = None,
    share: Share = WHOLE,
) -> Loader:
    """The loader of ``split``, "train" (shuffled, augmented) or "val", for the data set that ``cfg`` names.

    Batches hold the config's images per GPU for all GPUs of a step (``global_batch``). With SOLVER.DROP_LAST an
    epoch of training has only whole batches. ``share`` says which of the processes this is; its piece lies on the
    first of its ``devices``. ``classes`` gives the order of labels where an image folder has no training part to
    tell it. Raises ``DataError`` for a data set that is missing, unreadable, or has more classes than
    ``DATASET.NUM_CLASSES``; so does its iteration. An image that cannot be read is left out instead where
    ``DATASET.ON_ERROR`` says so.
    """
    train = split == "train"
    size, seed = image_size(cfg), cfg.RUNTIME.SEED
    normalise = Normalise(*statistics(cfg), devices[0], cfg.RUNTIME.CHANNELS_LAST)
    num_gpus = len(devices) * share.parts
    batch_size = global_batch(cfg, num_gpus) if train else cfg.SOLVER.TEST_BATCH_SIZE * num_gpus
    padding = size // 8 if cfg.DATASET.PADDING < 0 else cfg.DATASET.PADDING
    crop_flip = CropFlip(padding, flip=cfg.DATASET.NAME != "digits") if train else None
    augment = Augment(_image_transforms(size, uses_small_images(cfg), crop_flip), seed)
    workers, skip = num_workers(cfg), cfg.DATASET.ON_ERROR == "skip"
    drop_last = train and cfg.SOLVER.DROP_LAST

    if cfg.RUNTIME.INPUT == "shards":
        shards, order, classes = _shards(cfg, split, classes, augment, batch_size, share, drop_last)
        return WorkerLoader(shards, order, classes, size, normalise, workers, skip)
    source = build_source(cfg, split, classes)
    _check_classes(cfg, source.classes, _place(cfg, split))
    if _in_memory(cfg, len(source.labels)):
        progress = functools.partial(tqdm, desc=f"decoding {split}", leave=False, disable=not sys.stderr.isatty())
        pixels, failed = decode_all(source, _to_square(size), size, workers, progress, skip)
        return MemoryLoader(
            pixels, source.labels, source.classes, batch_size, normalise, crop_flip, train, seed, failed, share,
            drop_last,
        )  # fmt: skip
    images = SourceImages(source, augment, as_tensor=cfg.RUNTIME.DECODER == "torch")
    batches = EpochBatches(len(source.labels), batch_size, train, seed, share, drop_last)
    return WorkerLoader(images, batches, source.classes, size, normalise, workers, skip)


def _shards(
    cfg: CfgNode,
    split: str,
    classes: Sequence[str] | None,
    augment: Augment,
    batch_size: int,
    share: Share,
    drop_last: bool,
) -> tuple[ShardImages, ShardBatches, Sequence[str]]:
    """The images of a split's shards, their order, and the names of their classes."""
    require_webdataset()
    folder = Path(cfg.DATASET.ROOT) / cfg.DATASET.NAME / "shards" / split
    index = read_index(folder)
    classes = index.classes if classes is None else classes
    check_known(folder, index.classes, classes)
    _check_classes(cfg, classes, folder)
    sizes = [shard.images for shard in index.shards]
    workers = max(1, num_workers(cfg))
    order = ShardOrder(
        sizes, batch_size, split == "train", cfg.DATASET.SHUFFLE_BUFFER, cfg.RUNTIME.SEED, share, workers, drop_last
    )
    labels = [classes.index(name) for name in index.classes]
    images = ShardImages(folder, index, order, augment, labels, as_tensor=cfg.RUNTIME.DECODER == "torch")
    return images, ShardBatches(order, index.source), classes


def evaluation_images(cfg: CfgNode, source: ImageSource) -> SourceImages:
    """The images of ``source`` by (epoch, index), made as the "val" loader makes its own.

    Each is uint8 (size, size, 3), with its label, or a ``Failure``; what remains is ``Normalise`` with ``statistics``.
    """
    augment = Augment(_image_transforms(image_size(cfg), uses_small_images(cfg), None), cfg.RUNTIME.SEED)
    as_tensor = cfg.RUNTIME.DECODER == "torch" and not _in_memory(cfg, len(source.labels))  # decode_all has one decoder
    return SourceImages(source, augment, as_tensor)


def _in_memory(cfg: CfgNode, num_images: int) -> bool:
    """Whether images are held as bytes, 4 a pixel, or read by workers whenever they are needed."""
    if cfg.RUNTIME.INPUT != "auto":
        return cfg.RUNTIME.INPUT == "memory"
    return uses_small_images(cfg) and num_images * image_size(cfg) ** 2 * 4 <= MEMORY_LIMIT


def build_source(cfg: CfgNode, split: str, classes: Sequence[str] | None = None) -> ImageSource:
    """The labelled images of ``split`` for the data set that ``cfg`` names."""
    root, name = Path(cfg.DATASET.ROOT), cfg.DATASET.NAME
    if name == "digits":
        return digits(split)
    if name in ("CIFAR10", "CIFAR100"):
        return cifar(name, root, split, cfg.DATASET.DOWNLOAD)
    place = root / name / split
    if not os.path.lexists(place) and os.path.exists(root / name / "shards" / split / INDEX):
        raise DataError(f"{place}: no such folder, but there are shards: RUNTIME.INPUT shards reads them")
    return image_folder(root / name, split, classes)


def statistics(cfg: CfgNode) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation per channel, of pixels in [0, 1]."""
    if cfg.DATASET.NAME == "digits":
        mean, std = _DIGITS_STATS
    else:
        mean, std = _CIFAR_STATS if uses_small_images(cfg) else _IMAGENET_STATS
    return tuple(cfg.DATASET.MEAN) or mean, tuple(cfg.DATASET.STD) or std


def num_workers(cfg: CfgNode) -> int:
    """Worker processes of this one: beyond the number of CPU cores they only get into each other's way."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of a launcher, on this machine
    return min(cfg.DATASET.NUM_WORKERS, max(1, _cores() // processes))


def _cores() -> int:
    """That this process may use: a scheduler may have left it some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _place(cfg: CfgNode, split: str) -> Path:
    return Path(cfg.DATASET.ROOT) / cfg.DATASET.NAME / split


def _check_classes(cfg: CfgNode, classes: Sequence[str], where: Path) -> None:
    found, expected = len(classes), cfg.DATASET.NUM_CLASSES
    if found > expected:
        raise DataError(f"{where}: {found} classes, but DATASET.NUM_CLASSES is {expected}; set it to {found}")
    if found < expected:
        log.warning("%s: %d classes for a network of %d: labels count from 0 in sorted order", where, found, expected)


def _to_square(size: int) -> v2.Compose:
    """Resize the shorter side and cut out the centre; leaves an image of the right size as it is."""
    return v2.Compose([v2.Resize(size), v2.CenterCrop(size)])


class _RandomResizedCrop(v2.RandomResizedCrop):
    """Torchvision's, but the crop of a tensor is resized in HWC order, in which it was decoded: the same, faster."""

    def forward(self, image: Any) -> Any:
        if not isinstance(image, Tensor):
            return super().forward(image)
        drawn = self.make_params([image])
        top, left, height, width = (drawn[key] for key in ("top", "left", "height", "width"))
        crop = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
        return v2.functional.resize_image(crop, self.size, self.interpolation, antialias=self.antialias)[0]


def _image_transforms(size: int, small: bool, augment: CropFlip | None) -> v2.Compose:
    """An image, PIL or tensor, to one of ``size`` pixels square. Interpolation is bilinear."""
    flip = [v2.RandomHorizontalFlip()] if augment and augment.flip else []
    if small:
        crop = [v2.RandomCrop(size, augment.padding)] if augment else []
        return v2.Compose([_to_square(size), *crop, *flip])
    if augment:
        return v2.Compose([_RandomResizedCrop(size), *flip])
    return v2.Compose([v2.Resize(round(size * EVAL_RESIZE)), v2.CenterCrop(size)])
