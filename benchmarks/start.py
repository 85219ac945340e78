"""Time and memory from the config to the first batch of a data set as large as ImageNet, from shards and from a folder.

The data set is written to a temporary folder. Its images are one photograph, which has many names, so the names of the
files and the index are in the page cache, as they are after they were written or listed once.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import Row
from benchmarks.growth import CONFIGS
from benchmarks.memory import in_new_process, peak, private, resident
from isonet import load_cfg
from isonet.classes import wordnet_ids
from isonet.data import build_loader
from isonet.data.shards.index import Shard, ShardIndex
from isonet.data.shards.scan import ROW

IMAGES = 1_281_167  # the training images of ImageNet
SECONDS, MEGABYTES = 5.0, 1000.0  # at most, from shards
PER_SHARD, LINKS = 1000, 60_000  # a file has at most 65,000 names in ext4
WORKERS, BATCHES = 2, 8


def start_rows(images: int, place: Path) -> list[Row]:
    """Return the rows of a data set of ``images`` images, which is written below ``place``."""
    rows = []
    for kind, write in (("shards", write_shards), ("folder", write_folder)):
        write(place / kind, images)
        found = in_new_process(_in_this_process, kind, place / kind, method="spawn")
        work, bound = f"{kind}, {images:,} images", kind == "shards"
        rows.append(
            _row(f"{work}: until the first indices", found["indices"], "s", SECONDS if bound else None,
                 f"build_loader {found['built']:.2f} s; images from {WORKERS} workers {found['images']:.2f} s later")
        )  # fmt: skip
        rows.append(
            _row(f"{work}: peak memory of the process", found["peak"], "MB", MEGABYTES if bound else None,
                 f"{found['imports']:.0f} MB after the imports of torch and torchvision")
        )  # fmt: skip
        rows.append(
            _row(f"{work}: memory of a worker", found["worker"], "MB", None,
                 f"what it shares with no other process, after {BATCHES} batches")
        )  # fmt: skip
    return rows


def _row(work: str, value: float, unit: str, most: float | None, note: str) -> Row:
    """Return a row. Its ratio is ``most`` divided by the value, so that 1 is the goal."""
    ratio, goal, limit = (most / value, 1.0, f"at most {most:g} {unit}; ") if most else (None, None, "")
    return Row(work, None, value, ratio, goal, unit, limit + note)


def _in_this_process(kind: str, root: Path) -> dict[str, float]:
    multiprocessing.set_start_method(None, force=True)  # this process was spawned, and its workers would be, too
    return start_epoch(kind, root)


def start_epoch(kind: str, root: Path, more: int = BATCHES) -> dict[str, float]:
    """Start an epoch in this process, read ``more`` batches, and return the seconds and the memory in MB."""
    import isonet.data.augment
    import isonet.data.workers  # noqa: F401 - imported by build_loader

    imports, start = resident(), time.perf_counter()
    opts = ["DATASET.ROOT", str(root.parent), "DATASET.NAME", root.name, "DATASET.NUM_WORKERS", WORKERS,
            "RUNTIME.INPUT", "shards" if kind == "shards" else "workers"]  # fmt: skip
    loader = build_loader(load_cfg(CONFIGS / "IN1k-RISO50.yaml", opts), "train")
    built = time.perf_counter()
    loader.set_epoch(1)
    next(iter(loader.batches))
    indices = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter()
    for _ in range(more):
        next(batches)
    worker = max((private(child.pid or 0) for child in multiprocessing.active_children()), default=0.0)
    found = {"imports": imports, "peak": peak(), "worker": worker}
    in_megabytes = {name: value * 2**20 / 1e6 for name, value in found.items()}
    return {"built": built - start, "indices": indices - start, "images": first - indices, **in_megabytes}


def photograph() -> bytes:
    """Return a JPEG file of 400 x 300 pixels."""
    coarse = np.random.RandomState(0).randint(0, 256, (15, 20, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_folder(root: Path, images: int) -> None:
    """Write ``root/train/<wnid>/``: 1,000 folders of links to a photograph, with the names of ImageNet's files."""
    classes = wordnet_ids()
    for number, wnid in enumerate(classes):
        folder = root / "train" / wnid
        folder.mkdir(parents=True)
        for image in range(number, images, len(classes)):
            original = root / f"{image // LINKS}.jpg"
            if image % LINKS == number and not original.exists():
                original.write_bytes(photograph())
            os.link(original, f"{folder}/{wnid}_{image}.JPEG")


def write_shards(root: Path, images: int) -> None:
    """Write ``root/shards/train/``: an index, and links to a shard with a photograph, which every row points to."""
    folder = root / "shards" / "train"
    folder.mkdir(parents=True)
    data, classes = photograph(), wordnet_ids()
    member = tarfile.TarInfo("000000000-photograph.jpeg")
    member.size = len(data)
    with tarfile.open(folder / "000000.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(data))
    sizes = [min(PER_SHARD, images - start) for start in range(0, images, PER_SHARD)]
    shards = [Shard(f"{n:06d}.tar", size, (folder / "000000.tar").stat().st_size) for n, size in enumerate(sizes)]
    for shard in shards[1:]:
        os.link(folder / "000000.tar", folder / shard.name)
    rows = np.zeros(images, ROW)
    rows["offset"], rows["size"] = tarfile.BLOCKSIZE, len(data)
    rows["label"] = np.random.RandomState(0).permutation(images) % len(classes)
    ShardIndex(classes, shards, rows, "benchmark", "benchmark").save(folder, {})
