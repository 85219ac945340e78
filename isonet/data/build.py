"""Builds the loaders and sources that a config describes."""

import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from isonet.config import global_batch, image_size, uses_channels_last, uses_small_images
from isonet.data.cifar import cifar
from isonet.data.faults import ImageError, OnError
from isonet.data.folders import FolderSource, image_folder
from isonet.data.loader import Loader, Normalise
from isonet.data.memory import CropFlip, MemoryLoader
from isonet.data.random_streams import EpochBatches, Windows
from isonet.data.shards.index import INDEX
from isonet.data.shards.source import ShardSource, open_shards
from isonet.data.sources import ImageSource, digits
from isonet.errors import DataError
from isonet.launch import processes_here
from isonet.limits import too_many_files, usable_cores, workers_within_limit
from isonet.shares import WHOLE, Share

log = logging.getLogger("isonet")

MEMORY_LIMIT = 4 << 30  # bytes of decoded images; worker processes read the images of a larger data set
_WORTH_WORKERS = 200  # unlabelled images; reading fewer takes less time than starting worker processes

_STATISTICS = {  # mean and standard deviation per channel, of pixels in [0, 1]
    "digits": ((0.305, 0.305, 0.305), (0.376, 0.376, 0.376)),  # of the 1,437 training images
    "small": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # CIFAR's
    "large": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's
}


def build_loader(
    cfg: CfgNode,
    split: str,
    devices: Sequence[torch.device] = (torch.device("cpu"),),
    share: Share = WHOLE,
    source: ImageSource | None = None,
) -> Loader:
    """Build the loader of ``split``, "train" (shuffled, augmented) or "val", for the data set of ``cfg``.

    A batch contains the config's number of images per GPU for all GPUs of a step (``global_batch``). ``share`` is this
    rank's part of each batch, which is on the first of the rank's ``devices``. ``source`` contains the
    images. By default, it is the result of ``build_source``.

    Raises ``DataError`` if the data set is missing, is unreadable or has more classes than ``DATASET.NUM_CLASSES``.
    Iterating raises ``DataError`` for an image that cannot be read, unless ``DATASET.ON_ERROR`` is skip. With skip,
    training replaces the image by the next one that can be read, and evaluation leaves it out.
    """
    from isonet.data.augment import EVAL_RESIZE, Augment, image_transforms, to_square
    from isonet.data.workers import SourceImages, WorkerLoader, decode_all

    train = split == "train"
    size, small, seed = image_size(cfg), uses_small_images(cfg), cfg.RUNTIME.SEED
    num_gpus = len(devices) * share.parts
    batch_size = global_batch(cfg, num_gpus) if train else cfg.SOLVER.TEST_BATCH_SIZE * num_gpus
    padding = size // 8 if cfg.DATASET.PADDING < 0 else cfg.DATASET.PADDING
    crop_flip = CropFlip(padding, flip=cfg.DATASET.NAME != "digits") if train else None
    on_error: OnError = "stop" if cfg.DATASET.ON_ERROR == "stop" else "replace" if train else "leave out"

    source = source or build_source(cfg, split)
    _check_classes(cfg, split, source.classes)
    if isinstance(source, ShardSource):
        source.warn_if_enlarged(size if train or small else round(size * EVAL_RESIZE))
    in_memory = kept_in_memory(cfg, len(source.labels))
    windows = None
    if isinstance(source, ShardSource) and not in_memory:
        windows = Windows([shard.images for shard in source.index.shards], cfg.DATASET.SHUFFLE_BUFFER)
    drop_last = train and cfg.SOLVER.DROP_LAST
    batches = EpochBatches(len(source.labels), batch_size, train, seed, share, drop_last, windows)
    normalise = Normalise(*statistics(cfg), devices[0], uses_channels_last(cfg, devices[0].type))
    if in_memory:
        images = SourceImages(source, Augment(to_square(size), seed), size, on_error=on_error)
        return MemoryLoader(decode_all(images, num_workers(cfg)), batches, normalise, crop_flip)
    augment = Augment(image_transforms(size, small, crop_flip), seed)
    images = SourceImages(source, augment, size, cfg.RUNTIME.DECODER == "torch", on_error)
    return WorkerLoader(images, batches, normalise, num_workers(cfg))


def read_batches(
    cfg: CfgNode, paths: Sequence[Path], batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, list[Path], list[ImageError]]]:
    """Yield images without labels in the order of ``paths``, preprocessed like the validation images of ``cfg``.

    Each batch is a tuple of the images, float32 (N, 3, H, W), normalised, on ``device``; the paths of these images; and
    the errors of the images that could not be read. Worker processes read the images if there are many. Raises
    ``DataError`` if reading fails for a reason that is not a fault of the image.
    """
    from isonet.data.augment import Augment, image_transforms
    from isonet.data.workers import ImageBatches, SourceImages

    size = image_size(cfg)
    normalise = Normalise(*statistics(cfg), device, uses_channels_last(cfg, device.type))
    augment = Augment(image_transforms(size, uses_small_images(cfg), None), cfg.RUNTIME.SEED)
    as_tensor = cfg.RUNTIME.DECODER == "torch" and not kept_in_memory(cfg, len(paths))  # decode_all uses only Pillow
    images = SourceImages(FolderSource(paths, range(len(paths)), ()), augment, size, as_tensor)
    batches = EpochBatches(len(paths), batch_size, shuffle=False, seed=0)
    workers = num_workers(cfg) if len(paths) >= _WORTH_WORKERS else 0
    for batch in ImageBatches(images, batches, workers, pin_memory=device.type == "cuda"):
        failures = [error for error in batch.errors if isinstance(error, ImageError)]
        if len(failures) < len(batch.errors):
            raise DataError(str(next(error for error in batch.errors if error not in failures)))
        yield normalise(batch.pixels), [paths[number] for number in batch.numbers.tolist()], failures


def build_source(cfg: CfgNode, split: str, classes: Sequence[str] | None = None) -> ImageSource:
    """Return the labelled images of ``split`` for the data set that ``cfg`` names. Raises ``DataError``.

    classes: the names of the classes in the order of their labels; by default, the order in the training set.
    """
    root, name = Path(cfg.DATASET.ROOT), cfg.DATASET.NAME
    shards = root / name / "shards" / split
    if cfg.RUNTIME.INPUT == "shards":
        return open_shards(shards, classes)
    if name == "digits":
        return digits(split).relabelled(classes, Path(name))
    if name in ("CIFAR10", "CIFAR100"):
        return cifar(name, root, split, cfg.DATASET.DOWNLOAD, cfg.DATASET.CHECKSUM).relabelled(classes, Path(name))
    folder = root / name / split
    if not os.path.lexists(folder) and os.path.exists(shards / INDEX):
        raise DataError(f"{folder}: no such folder, but there are shards: RUNTIME.INPUT shards reads them")
    return image_folder(root / name, split, classes)


def statistics(cfg: CfgNode) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation per channel, of pixels in [0, 1]."""
    kind = "digits" if cfg.DATASET.NAME == "digits" else "small" if uses_small_images(cfg) else "large"
    mean, std = _STATISTICS[kind]
    return tuple(cfg.DATASET.MEAN) or mean, tuple(cfg.DATASET.STD) or std


def num_workers(cfg: CfgNode) -> int:
    """Return the number of this rank's workers: DATASET.NUM_WORKERS, or its share of the CPU cores if that is less.

    If the limit of open files allows fewer workers, log a warning and return the allowed number. The batches do not
    depend on the number of workers.
    """
    return _within_limit(min(cfg.DATASET.NUM_WORKERS, max(1, usable_cores() // processes_here())))


@functools.cache  # so that the loaders of a run warn once
def _within_limit(workers: int) -> int:
    allowed = workers_within_limit(workers)
    if allowed < workers:
        log.warning("only %d of %d worker processes read images: %s", allowed, workers, too_many_files())
    return allowed


def kept_in_memory(cfg: CfgNode, num_images: int) -> bool:
    """Whether the images are kept in memory as bytes, 4 per pixel, instead of being read in each epoch."""
    if cfg.RUNTIME.INPUT in ("memory", "workers"):
        return cfg.RUNTIME.INPUT == "memory"
    return uses_small_images(cfg) and num_images * image_size(cfg) ** 2 * 4 <= MEMORY_LIMIT


def _check_classes(cfg: CfgNode, split: str, classes: Sequence[str]) -> None:
    where, count, expected = Path(cfg.DATASET.ROOT) / cfg.DATASET.NAME / split, len(classes), cfg.DATASET.NUM_CLASSES
    if count > expected:
        remedy = f"set it to {count}" if split == "train" else f"set it to {count} before training, or remove classes"
        raise DataError(f"{where}: {count} classes, but DATASET.NUM_CLASSES is {expected}; {remedy}")
