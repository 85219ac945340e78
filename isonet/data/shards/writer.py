"""Writes an image folder as tar shards. A kill costs at most one shard, and does not change the bytes of the result.

Shards are written one after the other, and each is complete or does not exist. From the start, ``plan.json`` describes
the content of all shards. At the end, the index replaces it.

For each image, a shard contains ``NUMBER-NAME.EXT``, the bytes of the image's file, and ``NUMBER-NAME.cls``, the label
in decimal. Numbers count from 0 through all shards. NAME is derived from the file's path, to be readable.
"""

import hashlib
import io
import json
import logging
import os
import re
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from isonet.data.faults import ImageError
from isonet.data.folders import FolderSource
from isonet.data.random_streams import generator
from isonet.data.shards.index import INDEX, PLAN, ROWS, SUMS, ShardIndex, make_index, progress, read_head
from isonet.data.shards.smaller import Smaller
from isonet.errors import DataError, printable
from isonet.files.storage import FolderLock, remove_leftovers, write_file
from isonet.limits import usable_cores

log = logging.getLogger("isonet")

_OWN_NAME = re.compile(r"\d{6,}\.tar")
_THREADS = 16  # files read at a time, because a network file system is slow for one request after another


@dataclass(frozen=True)
class Plan:
    """The shards to write. images: paths below ``root``, with labels, in the order of their numbers.

    marks: fields of the index: ``source``, a digest of the images, ``options``, in words, and the options of
    ``smaller``. Existing shards must have the same marks. smaller: how to store the images; None copies the files.
    """

    root: Path
    images: Sequence[tuple[Path, int]]
    classes: Sequence[str]
    per_shard: int
    marks: dict[str, Any]
    smaller: Smaller | None = None

    def content(self, path: Path) -> tuple[bytes, str]:
        """Return the bytes to store of an image file, and their extension. A warning names an unreadable image.

        Its bytes are stored, so that DATASET.ON_ERROR decides about it, as if the folder were read.
        """
        data = path.read_bytes()
        try:
            if self.smaller:
                return self.smaller.encode(data, path)
        except ImageError as error:
            log.warning("%s: %s; it is stored as it is, for DATASET.ON_ERROR", printable(error.path), error.reason)
        return data, path.suffix[1:].lower()


def make_plan(
    source: FolderSource, root: Path, shuffle: bool, seed: int, per_shard: int, smaller: Smaller | None = None
) -> Plan:
    """Plan the shards of a split.

    root: the folder of the split. shuffle: whether to number the images in a random order, so that a shard has images
    of all classes. per_shard: the number of images in a shard. smaller: how to store them; None copies the files.
    """
    count = len(source.paths)
    order = torch.randperm(count, generator=generator(seed, "write shards")) if shuffle else torch.arange(count)
    options = f"{per_shard} images a shard, {f'shuffled with seed {seed}' if shuffle else 'in order'}"
    options += f", {smaller}" if smaller else ""
    digest = hashlib.sha256(json.dumps([options, list(source.classes)]).encode())
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, status in zip(source.paths, pool.map(Path.stat, source.paths), strict=True):
            line = f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(line.encode(errors="surrogateescape"))
    images = [(source.paths[position], source.labels[position]) for position in order.tolist()]
    marks = {"source": digest.hexdigest(), "options": options, **(asdict(smaller) if smaller else {})}
    return Plan(root, images, source.classes, per_shard, marks, smaller)


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
        todo = {file: start for file, start in files.items() if not file.exists()}
        pool = ThreadPoolExecutor(max(_THREADS, usable_cores()))  # each can keep a core busy: Pillow releases the GIL
        try:
            ahead = _read_ahead(plan, list(todo.values()), pool)
            for file, contents in zip(progress(list(todo), f"writing {folder}"), ahead, strict=True):
                data = _pack(plan, todo[file], contents)
                write_file(file, data)
                sums[file.name] = hashlib.sha256(data).hexdigest()
        finally:
            pool.shutdown(cancel_futures=True)
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


def _read_ahead(plan: Plan, starts: Sequence[int], pool: ThreadPoolExecutor) -> Iterator[Iterator[tuple[bytes, str]]]:
    """Yield the contents of each shard. Threads read the next shard while the caller writes this one."""
    waiting: deque[Iterator[tuple[bytes, str]]] = deque()
    for start in starts:
        waiting.append(pool.map(plan.content, [path for path, _ in plan.images[start : start + plan.per_shard]]))
        if len(waiting) == 2:
            yield waiting.popleft()
    yield from waiting


def _pack(plan: Plan, start: int, contents: Iterable[tuple[bytes, str]]) -> bytes:
    """Return the shard from image number ``start`` on. Its bytes depend only on the images, not on the time."""
    images = plan.images[start : start + plan.per_shard]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, ((path, label), (data, ending)) in enumerate(zip(images, contents, strict=True), start):
            name = re.sub(r"[^A-Za-z0-9_-]", "_", str(path.relative_to(plan.root).with_suffix("")))[-60:]
            for extension, content in sorted({ending: data, "cls": str(label).encode()}.items()):
                member = tarfile.TarInfo(f"{number:09d}-{name}.{extension}")
                member.size, member.mode = len(content), 0o444
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()
