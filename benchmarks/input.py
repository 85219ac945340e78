"""Measure the images per second that reach the network.

  python -m benchmarks.input --cifar data/cifar10-jpg --imagenet data/ILSVRC2012

CIFAR images are read from ``FOLDER/train/<class>/``; without a folder they are random pixels of the same size. ImageNet
images are read from ``FOLDER/val/<wnid>/`` as training images, in this process and one thread, to measure the speed of
one core. The rows of shards with smaller images measure reading, decoding, random resized crop and flip of one image
after the other; the rows "normalised batches" measure whole loaders.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from benchmarks import smaller
from benchmarks.baseline import PilImages, baseline_loader, cifar_transform, imagenet_transform
from benchmarks.common import Row, interleave, make_parser, report
from isonet import load_cfg
from isonet.data.augment import Augment, image_transforms
from isonet.data.build import statistics
from isonet.data.folders import FolderSource, image_folder
from isonet.data.loader import Normalise
from isonet.data.memory import CropFlip, Decoded, MemoryLoader
from isonet.data.random_streams import EpochBatches
from isonet.data.sources import ArraySource
from isonet.data.workers import SourceImages, WorkerLoader

BATCH = 128


def cifar_rows(folder: Path | None, repeats: int, device: torch.device, images: int) -> list[Row]:
    """Compare PIL in 2 workers with whole batches of bytes. Both start from decoded images, as CIFAR stores them."""
    source = _cifar(folder, images)
    mean, std = statistics(load_cfg(None, ["DATASET.NAME", "CIFAR10"]))
    published = baseline_loader(PilImages(source, cifar_transform(mean, std)), BATCH, num_workers=2)
    normalise = Normalise(mean, std, device, channels_last=True)
    batches = EpochBatches(len(source.labels), BATCH, shuffle=True, seed=0)
    decoded = Decoded(torch.from_numpy(source.images), torch.tensor(source.labels), source.classes)
    ours = MemoryLoader(decoded, batches, normalise, CropFlip(4, True))
    seconds = interleave([lambda: _drain(published), lambda: _drain(ours)], repeats, device)
    count = len(source.labels)
    return [_rate("CIFAR-10 training images, 32 px", count, seconds, 5.0, "PIL with 2 workers")]


def imagenet_rows(folder: Path, repeats: int, device: torch.device) -> list[Row]:
    """Measure images per second and core: decoding, augmentation and normalisation in one thread of one process."""
    photographs = image_folder(folder, "val")
    source = FolderSource(list(photographs.paths) * 2, list(photographs.labels) * 2, photographs.classes)
    mean, std = statistics(load_cfg(None))
    normalise = Normalise(mean, std, device, channels_last=True)
    published = baseline_loader(PilImages(source, imagenet_transform(mean, std)), 50, num_workers=0)
    transform = image_transforms(224, False, CropFlip(0, True))
    rows = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for decoder, goal, note in (("pil", None, "the same pixels"), ("torch", 1.5, _difference(photographs))):
        batches = EpochBatches(len(source.labels), 50, shuffle=True, seed=0)
        images = SourceImages(source, Augment(transform, 0), 224, as_tensor=decoder == "torch")
        loader = WorkerLoader(images, batches, normalise, num_workers=0)
        seconds = interleave([functools.partial(_drain, published), functools.partial(_drain, loader)], repeats, device)
        rows.append(_rate(f"ImageNet training images, DECODER {decoder}", len(source.labels), seconds, goal, note))
    torch.set_num_threads(threads)
    return rows


def _difference(source: FolderSource) -> str:
    """Return the mean pixel difference between torchvision's and Pillow's decoding and resizing, for equal crops."""
    transform = image_transforms(224, False, CropFlip(0, True))
    mean = []
    for index in range(len(source.labels)):
        torch.manual_seed(index)
        pil = np.asarray(transform(source.read(index))).astype(np.int16)
        torch.manual_seed(index)
        tensor = transform(source.read_tensor(index)).permute(1, 2, 0).numpy().astype(np.int16)
        mean.append(np.abs(pil - tensor).mean())
    return f"mean pixel difference {np.mean(mean):.3f} of 255"


def _cifar(folder: Path | None, images: int) -> ArraySource:
    if folder is None:
        pixels = np.random.RandomState(0).randint(0, 256, (images, 32, 32, 3), dtype=np.uint8)
        return ArraySource(pixels, [0] * images, ["none"])
    stored = image_folder(folder, "train")
    chosen = np.linspace(0, len(stored.labels) - 1, images).astype(int)
    pixels = np.stack([np.asarray(stored.read(i)) for i in chosen])
    return ArraySource(pixels, [stored.labels[i] for i in chosen], stored.classes)


def _drain(loader: Iterable) -> None:
    for _ in loader:
        pass


def _rate(work: str, count: int, seconds: list[float], goal: float | None, note: str) -> Row:
    baseline, ours = (count / s for s in seconds)
    return Row(work, baseline, ours, ours / baseline, goal, "images/s", note)


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--cifar", type=Path, metavar="FOLDER", help="a CIFAR-10 image folder")
    parser.add_argument("--imagenet", type=Path, metavar="FOLDER", help="an ImageNet folder with val/")
    args = parser.parse_args()
    device = torch.device(args.device)
    start = time.perf_counter()
    repeats = args.repeats or (2 if args.quick else 5)
    rows = cifar_rows(args.cifar, repeats, device, 10_000 if args.quick else 50_000)
    if args.imagenet:
        rows += imagenet_rows(args.imagenet, repeats, device)
        rows += smaller.speed_rows(args.imagenet, max(repeats, 5), device)
    else:
        rows.append(Row("ImageNet training images", None, None, None, 1.5, "", "not run: no --imagenet FOLDER"))
    report("input", rows, args.json, seconds=round(time.perf_counter() - start))


if __name__ == "__main__":
    main()
