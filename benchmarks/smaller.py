"""Compare images that shards store smaller with the image folder: speed, size, crops, and logits of validation.

  python -m benchmarks.smaller --imagenet data/ILSVRC2012

The images of ``FOLDER/val/<wnid>/`` are written as shards to a temporary folder. ``benchmarks.input`` has the speed;
this command has the logits. No trained weights are needed: the networks have the weights that a seed draws, so logits
are compared after subtracting each logit's mean over the images, which all images of such a network share.
"""

from __future__ import annotations

import argparse
import functools
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models, transforms

from benchmarks.baseline import PilImages, baseline_loader, imagenet_transform
from benchmarks.common import Row, interleave
from isonet import build_model, load_cfg
from isonet.data.augment import Augment, image_transforms
from isonet.data.build import statistics
from isonet.data.folders import FolderSource, image_folder
from isonet.data.loader import Normalise
from isonet.data.memory import CropFlip
from isonet.data.random_streams import EpochBatches
from isonet.data.shards.smaller import Smaller
from isonet.data.shards.source import ShardSource, open_shards
from isonet.data.shards.writer import make_plan, write_shards
from isonet.data.sources import ImageSource
from isonet.data.workers import SourceImages, WorkerLoader

SIZE, QUALITY, BATCH = 224, 90, 50
GOALS = {320: 3.0, 256: 4.0}  # images per second against the folder, by the short side
CONFIGS = Path(__file__).parent.parent / "configs"
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "IN1k-ISO18": lambda: build_model(load_cfg(CONFIGS / "IN1k-ISO18.yaml")),
    "torchvision's ResNet-18": models.resnet18,
    "IN1k-RISO50": lambda: build_model(load_cfg(CONFIGS / "IN1k-RISO50.yaml")),
}


def write(folder: Path, short_side: int, place: Path) -> ShardSource:
    """Write shards of the images of ``folder``/val, in the order of the folder, below ``place``."""
    plan = make_plan(image_folder(folder, "val"), folder / "val", False, 0, 1000, Smaller(short_side, QUALITY))
    write_shards(plan, place / str(short_side), overwrite=False)
    return open_shards(place / str(short_side))


def speed_rows(folder: Path, repeats: int, device: torch.device) -> list[Row]:
    """Measure reading, decoding, random resized crop and flip, in this process and one thread, and whole loaders."""
    source = image_folder(folder, "val")
    published = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()])
    augment, count, rows = Augment(image_transforms(SIZE, False, CropFlip(0, True)), 0), len(source.paths), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        stored = [write(folder, side, Path(place)) for side in GOALS]
        mean_and_std = statistics(load_cfg(None))
        loaders: list[Iterable] = [baseline_loader(PilImages(source, imagenet_transform(*mean_and_std)), BATCH, 0)]
        variants: list[Callable[[], None]] = [lambda: _read_published(source, published)]
        for shards in stored:
            images = SourceImages(shards, augment, SIZE, as_tensor=True)
            variants.append(functools.partial(_read_batches, images, count))
            batches = EpochBatches(count, BATCH, shuffle=True, seed=0)
            loaders.append(WorkerLoader(images, batches, Normalise(*mean_and_std, device, channels_last=True), 0))
        baseline, *ours = (count / seconds for seconds in interleave(variants, repeats, device))
        whole, *loaded = (
            count / s for s in interleave([functools.partial(_drain, x) for x in loaders], repeats, device)
        )
        kilobytes = sum(path.stat().st_size for path in source.paths) / 1e3 / count
        for (side, goal), shards, rate in zip(GOALS.items(), stored, ours, strict=True):
            smaller = shards.index.rows["size"].mean() / 1e3
            note = f"crops differ by {crop_difference(source, shards):.2f} of 255; {smaller:.1f} kB an image"
            note += f", 1/{kilobytes / smaller:.1f} of the folder"
            rows.append(Row(f"ImageNet, {side} px shards", baseline, rate, rate / baseline, goal, "images/s", note))
        for side, rate in zip(GOALS, loaded, strict=True):
            work = f"ImageNet, {side} px shards, normalised batches"
            rows.append(Row(work, whole, rate, rate / whole, None, "images/s"))
    torch.set_num_threads(threads)
    return rows


def _read_published(source: ImageSource, transform: Callable[[Image.Image], object]) -> None:
    for number in range(len(source.labels)):
        transform(source.read(number))


def _read_batches(images: SourceImages, count: int) -> None:
    """Read images as a ``DataLoader`` does."""
    for start in range(0, count, BATCH):
        images.__getitems__([(1, number) for number in range(start, min(start + BATCH, count))])


def _drain(loader: Iterable) -> None:
    for _ in loader:
        pass


def crop_difference(source: ImageSource, stored: ImageSource) -> float:
    """Return the mean absolute difference of the pixels of random resized crops, of 255.

    ``RandomResizedCrop`` draws each crop for the size of the image in ``source``. The crop of the stored image has the
    same borders as shares of width and height, in fractions of a pixel. Pillow resizes both to 224 pixels.
    """
    crop, differences = transforms.RandomResizedCrop(SIZE), []
    for number in range(len(source.labels)):
        whole, smaller = source.read(number), stored.read(number)
        torch.manual_seed(number)
        top, left, height, width = crop.get_params(whole, crop.scale, crop.ratio)
        box = np.array([left, top, left + width, top + height])
        scale = np.divide(smaller.size, whole.size)
        pixels = [
            np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, tuple(edges)), np.int16)
            for image, edges in ((whole, box), (smaller, box * np.tile(scale, 2)))
        ]
        differences.append(np.abs(pixels[0] - pixels[1]).mean())
    return float(np.mean(differences))


class Encoded(ImageSource):
    """The images of a source, encoded again as JPEG of the same size and ``QUALITY``."""

    def __init__(self, source: FolderSource) -> None:
        self.source, self.labels, self.classes = source, source.labels, source.classes

    def read(self, index: int) -> Image.Image:
        file = io.BytesIO()
        self.source.read(index).save(file, "JPEG", quality=QUALITY)
        return Image.open(file)


def logits(network: nn.Module, source: ImageSource, count: int, decoder: str = "pil") -> Tensor:
    """Return the logits (count, classes) of the first images, preprocessed as for validation."""
    images = SourceImages(source, Augment(image_transforms(SIZE, False, None), 0), SIZE, as_tensor=decoder == "torch")
    normalise = Normalise(*statistics(load_cfg(None)), torch.device("cpu"), True)
    with torch.inference_mode():
        return torch.cat([network(normalise(images.collate([images[0, n]]).pixels)) for n in range(count)])


def compare(whole: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the difference of logits (N, classes) relative to how far images differ, and the same top-1 in percent.

    The mean over the images of ``whole`` is subtracted from both.
    """
    mean = whole.mean(0)
    distance = ((other - whole).norm() / (whole - mean).norm()).item()
    return distance, 100 * ((other - mean).argmax(1) == (whole - mean).argmax(1)).float().mean().item()


def logit_table(folder: Path, count: int, networks: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a table: how far logits differ from the logits of the folder, decoded by Pillow."""
    source = image_folder(folder, "val")
    yield "| network | compared with the folder, decoded by Pillow | logits differ by | same top-1 |"
    yield "|---|---|---:|---:|"
    with tempfile.TemporaryDirectory() as place:
        others: dict[str, tuple[ImageSource, str]] = {
            "DECODER torch": (source, "torch"), f"the same size, JPEG quality {QUALITY}": (Encoded(source), "pil")
        }  # fmt: skip
        others |= {f"{side} px shards": (write(folder, side, Path(place)), "pil") for side in GOALS}
        for name in networks:
            torch.manual_seed(0)
            network = NETWORKS[name]().eval()
            whole = logits(network, source, count)
            for other, (images, decoder) in others.items():
                distance, same = compare(whole, logits(network, images, count, decoder))
                yield f"| {name} | {other} | {100 * distance:.2f} % | {same:.1f} % |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="use 50 images and two networks")
    parser.add_argument("--imagenet", type=Path, metavar="FOLDER", required=True, help="an ImageNet folder with val/")
    args = parser.parse_args()
    count = len(image_folder(args.imagenet, "val").paths)
    for line in logit_table(args.imagenet, 50 if args.quick else count, list(NETWORKS)[: 2 if args.quick else None]):
        print(line, flush=True)


if __name__ == "__main__":
    main()
