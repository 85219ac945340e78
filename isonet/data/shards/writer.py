"""Writes an image folder as tar shards. A kill costs at most one shard, and does not change the bytes of the result.

Shards are written one after the other, and each is complete or does not exist. From the start, ``plan.json`` describes
the content of all shards. At the end, the index replaces it.

For each image, a shard contains ``NUMBER-NAME.EXT``, the bytes of the image's file, and ``NUMBER-NAME.cls``, the label
in decimal. Numbers count from 0 through all shards. NAME is derived from the file's path, to be readable.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from isonet.data.folders import FolderSource
from isonet.data.random_streams import generator
from isonet.data.shards.index import INDEX, PLAN, ROWS, SUMS, ShardIndex, make_index, progress, read_head
from isonet.errors import DataError, printable
from isonet.files.storage import FolderLock, remove_leftovers, write_file

_OWN_NAME = re.compile(r"\d{6,}\.tar")
_THREADS = 16  # files read at a time, because a network file system is slow for one request after another


@dataclass(frozen=True)
class Plan:
    """The shards to write. images: paths below ``root``, with labels, in the order of their numbers.

    marks: ``source``, a digest of the images, and ``options``, in words. Existing shards must have the same marks.
    """

    root: Path
    images: Sequence[tuple[Path, int]]
    classes: Sequence[str]
    per_shard: int
    marks: dict[str, str]


def make_plan(source: FolderSource, root: Path, shuffle: bool, seed: int, per_shard: int) -> Plan:
    """Plan the shards of a split.

    root: the folder of the split. shuffle: whether to number the images in a random order, so that a shard has images
    of all classes. per_shard: the number of images in a shard.
    """
    count = len(source.paths)
    order = torch.randperm(count, generator=generator(seed, "write shards")) if shuffle else torch.arange(count)
    options = f"{per_shard} images a shard, {f'shuffled with seed {seed}' if shuffle else 'in order'}"
    digest = hashlib.sha256(json.dumps([options, list(source.classes)]).encode())
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, status in zip(source.paths, pool.map(Path.stat, source.paths), strict=True):
            line = f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(line.encode(errors="surrogateescape"))
    images = [(source.paths[position], source.labels[position]) for position in order.tolist()]
    return Plan(root, images, source.classes, per_shard, {"source": digest.hexdigest(), "options": options})


def write_shards(plan: Plan, folder: Path, overwrite: bool) -> ShardIndex:
    """Write the shards of ``plan`` that ``folder`` lacks, and the index of all shards.

    overwrite: whether to delete existing shards first. Raises ``DataError`` if ``check_plan`` raises it, and
    ``OSError`` if an image cannot be read or a shard cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder):
        remove_leftovers(folder)
        if not check_plan(plan, folder, overwrite):
            # The index and the plan are deleted last: after a kill, they identify the other files as files of this tool
            for file in [*folder.glob("*.tar"), *(folder / name for name in (SUMS, ROWS, INDEX, PLAN))]:
                file.unlink(missing_ok=True)
            write_file(folder / PLAN, json.dumps(plan.marks) + "\n")
        sums = {}
        starts = range(0, len(plan.images), plan.per_shard)
        files = {folder / f"{number:06d}.tar": start for number, start in enumerate(starts)}
        with ThreadPoolExecutor(_THREADS) as pool:
            for file in progress([file for file in files if not file.exists()], f"writing {folder}"):
                data = _pack(plan, files[file], pool)
                write_file(file, data)
                sums[file.name] = hashlib.sha256(data).hexdigest()
        return make_index(folder, plan.classes, plan.marks, sums)


def check_plan(plan: Plan, folder: Path, overwrite: bool) -> bool:
    """Return whether ``folder`` contains shards of this plan, which are kept.

    Raises ``DataError`` if the folder contains shards of another plan and ``overwrite`` is False, or if it contains tar
    files or an index that ``write_shards`` did not write.
    """
    marks = read_head(folder / INDEX) or read_head(folder / PLAN)
    files = [path for path in (folder / name for name in (INDEX, PLAN, SUMS, ROWS)) if os.path.lexists(path)]
    tars = sorted(folder.glob("*.tar"))
    others = [path for path in tars if not _OWN_NAME.fullmatch(path.name)] if marks.get("source") else files + tars
    if others:
        raise DataError(
            f"{printable(others[0])} was not written by this command, or its index is damaged: move it away, or choose "
            "another --output"
        )
    if overwrite or not files:
        return False
    if any(marks.get(key) != mark for key, mark in plan.marks.items()):
        raise DataError(
            f"{printable(folder)} has shards of other images (by name, size or time), other classes or other options "
            f"({printable(marks.get('options', '?'))[:100]}, now {plan.marks['options']}); --overwrite replaces them"
        )
    return True


def _pack(plan: Plan, start: int, pool: ThreadPoolExecutor) -> bytes:
    """Return the shard from image number ``start`` on. Its bytes depend only on the images, not on the time."""
    images = plan.images[start : start + plan.per_shard]
    contents = pool.map(Path.read_bytes, [path for path, _ in images])
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, ((path, label), data) in enumerate(zip(images, contents, strict=True), start):
            name = re.sub(r"[^A-Za-z0-9_-]", "_", str(path.relative_to(plan.root).with_suffix("")))[-60:]
            for extension, content in sorted({path.suffix[1:].lower(): data, "cls": str(label).encode()}.items()):
                member = tarfile.TarInfo(f"{number:09d}-{name}.{extension}")
                member.size, member.mode = len(content), 0o444
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()
