"""Compare the images per second from tar shards with the image folder that the shards were written from.

  python -m benchmarks.shards --cifar data/cifar10-jpg --imagenet data/ILSVRC2012

Both options name folders with ``val/<class>/``, which are read as training images in one process and one thread.
"Bytes alone" reads the files without decoding. "From disk" evicts the contents of the files from the page cache
before each run, but not their names and locations. In a folder of a million files, the system also has to look these
up.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.common import Row, interleave, make_parser, report
from isonet import load_cfg
from isonet.data import Loader, build_loader
from isonet.data.folders import image_folder
from isonet.data.random_streams import Windows, generator
from isonet.data.shards.source import open_shards
from isonet.data.shards.writer import make_plan, write_shards

NAMES = {"cifar": ("CIFAR-10, 2 kB each", 32), "imagenet": ("ImageNet, 110 kB each", 224)}  # title and pixels


def rows_of(kind: str, folder: Path, repeats: int) -> list[Row]:
    name, size = NAMES[kind]
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:  # on the same disk
        root = Path(place) / "set"
        root.mkdir()
        (root / "train").symlink_to((folder / "val").resolve())
        source, out = image_folder(root, "train"), root / "shards" / "train"
        count = len(source.paths)
        start = time.perf_counter()
        write_shards(make_plan(source, root / "train", True, 0, 1000), out, overwrite=False)
        seconds = time.perf_counter() - start
        shards = sorted(out.glob("*.tar"))
        megabytes = sum(path.stat().st_size for path in shards) / 1e6
        note = f"{megabytes / seconds:.0f} MB/s; {count:,} images, {megabytes:.1f} MB in all; shards: {len(shards)}"
        rows = [Row(f"{name}: written", None, count / seconds, None, None, "images/s", note)]

        shuffled = [source.paths[i] for i in torch.randperm(count).tolist()]
        bare = [lambda: _read_files(shuffled), lambda: _read_shards(out)]
        rows.append(_rate(f"{name}: bytes alone", count, interleave(bare, repeats, torch.device("cpu"))))
        rows.append(_rate(f"{name}: bytes alone, from disk", count, _from_disk(bare, [*shuffled, *shards], repeats)))
        for decoder in ("pil", "torch"):
            loaders = [_drain(_loader(root, size, way, decoder)) for way in ("workers", "shards")]
            seconds_each = interleave(loaders, repeats, torch.device("cpu"))
            rows.append(_rate(f"{name}: decoded, DECODER {decoder}", count, seconds_each))
    return rows


def _loader(root: Path, size: int, way: str, decoder: str) -> Loader:
    opts = {"DATASET.ROOT": str(root.parent), "DATASET.NAME": root.name, "DATASET.IMAGE_SIZE": size,
            "RUNTIME.INPUT": way, "RUNTIME.DECODER": decoder, "DATASET.NUM_WORKERS": 0,
            "DATASET.NUM_CLASSES": len(image_folder(root, "train").classes), "RUNTIME.CHANNELS_LAST": True,
            "SOLVER.TRAIN_BATCH_SIZE": 64}  # fmt: skip
    cfg = load_cfg(None, [item for pair in opts.items() for item in pair])
    return build_loader(cfg, "train")


def _drain(loader: Loader) -> Callable[[], None]:
    def drain() -> None:
        loader.set_epoch(1)
        for _ in loader:
            pass

    return drain


def _from_disk(variants: Sequence[Callable[[], None]], files: Sequence[Path], repeats: int) -> list[float]:
    """Return the median seconds of each variant. They run alternately, on files evicted from the page cache."""
    seconds: list[list[float]] = [[] for _ in variants]
    for _ in range(repeats):
        for times, variant in zip(seconds, variants, strict=True):
            for path in files:
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            variant()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def _read_files(paths: Sequence[Path]) -> None:
    for path in paths:
        path.read_bytes()


def _read_shards(folder: Path) -> None:
    source = open_shards(folder)
    windows = Windows([shard.images for shard in source.index.shards], 10_000)
    for index in windows.order(generator("benchmark")).tolist():
        source.encoded(index)


def _rate(work: str, count: int, seconds: list[float]) -> Row:
    baseline, ours = (count / s for s in seconds)
    return Row(work, baseline, ours, ours / baseline, None, "images/s")


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--cifar", type=Path, metavar="FOLDER", help="a CIFAR-10 image folder with val/")
    parser.add_argument("--imagenet", type=Path, metavar="FOLDER", help="an ImageNet folder with val/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    repeats = args.repeats or (1 if args.quick else 5)
    rows = []
    for kind, folder in (("imagenet", args.imagenet), ("cifar", args.cifar)):
        if folder:
            rows += rows_of(kind, folder, repeats)
        else:
            rows.append(Row(NAMES[kind][0], None, None, None, None, "", f"not run: no --{kind} FOLDER"))
    report("shards against the folder", rows, args.json)


if __name__ == "__main__":
    main()
