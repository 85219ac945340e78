"""Writing shards from an image folder: a kill at any moment loses a shard at most, and the same bytes come out.

Shards are written one after the other, each whole under its name or not at all, and each enters ``SHA256SUMS``
when it is on disk. ``plan.json`` says from the start what all of them will hold; ``index.json`` takes its place
at the end.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from isonet.data.folders import FolderSource
from isonet.data.random_streams import generator
from isonet.data.shards.index import INDEX, SUMS, Shard, ShardIndex, member_name, read_index, shard_name
from isonet.errors import DataError, StorageError, printable
from isonet.files.storage import FolderLock, append_line, reason, remove_leftovers, write_file

PLAN = "plan.json"
_THREADS = 16  # files read at a time: a network file system is asked for many, or it is slow


@dataclass(frozen=True)
class Plan:
    """What is to be written: images by position in ``source``, in the order of their numbers, ``per_shard`` of them
    to a shard. source_print: what tells these images from others. options: in words."""

    root: Path
    source: FolderSource
    order: Sequence[int]
    per_shard: int
    source_print: str
    options: str

    @property
    def marks(self) -> dict[str, str]:
        """What shards that are there must have been written with, to be gone on with."""
        return {"source": self.source_print, "options": self.options}

    def __len__(self) -> int:
        """The number of shards."""
        return -(-len(self.order) // self.per_shard)

    def images(self, shard: int) -> list[tuple[int, int]]:
        """(number, position in the source) of each image of a shard."""
        start = shard * self.per_shard
        return list(enumerate(self.order[start : start + self.per_shard], start))


def make_plan(source: FolderSource, root: Path, shuffle: bool, seed: int, per_shard: int) -> Plan:
    """root: the folder of the split. shuffle: number the images in a random order, so that a shard has all classes."""
    count = len(source.paths)
    order = torch.randperm(count, generator=generator(seed, "write shards")) if shuffle else torch.arange(count)
    options = f"{per_shard} images a shard, {f'shuffled with seed {seed}' if shuffle else 'in order'}"
    digest = hashlib.sha256(json.dumps([options, list(source.classes)]).encode())
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, status in zip(source.paths, pool.map(_status, source.paths), strict=True):
            line = f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(line.encode(errors="surrogateescape"))
    return Plan(root, source, order.tolist(), per_shard, digest.hexdigest(), options)


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({reason(error)}); mend or remove it") from None


def write_shards(
    plan: Plan, folder: Path, overwrite: bool, progress: Callable[[Sequence[int], int], Iterator[int]]
) -> ShardIndex:
    """Write what is missing of the shards of ``plan`` to ``folder``.

    progress: goes through the numbers of the shards that are to be written, given how many are there already.
    overwrite: begin anew whatever is there. Raises ``DataError`` rather than mix two plans (see ``check_plan``), or
    where an image cannot be read, and ``StorageError`` where a shard cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({reason(error)})") from None
    with FolderLock(folder):
        remove_leftovers(folder)
        sums = _begin(plan, folder, overwrite)
        todo = [i for i in range(len(plan)) if shard_name(i) not in sums]
        with ThreadPoolExecutor(_THREADS) as pool:
            for i in progress(todo, len(plan) - len(todo)):
                data = _pack(plan, i, pool)
                write_file(folder / shard_name(i), data)
                sums[shard_name(i)] = hashlib.sha256(data).hexdigest()
                append_line(folder / SUMS, _line(shard_name(i), sums[shard_name(i)]))
        return _finish(plan, folder, sums)


def _begin(plan: Plan, folder: Path, overwrite: bool) -> dict[str, str]:
    """The checksums of the shards that are there; writes down the plan if there are none."""
    if not overwrite and check_plan(plan, folder):
        return _whole_shards(folder)
    for file in [folder / INDEX, folder / PLAN, folder / SUMS, *folder.glob("*.tar")]:
        file.unlink(missing_ok=True)
    write_file(folder / PLAN, json.dumps(plan.marks) + "\n")
    return {}


def check_plan(plan: Plan, folder: Path) -> bool:
    """Whether ``folder`` holds shards of this plan, all or some; not if it holds none. ``DataError``: others."""
    file = next((folder / name for name in (INDEX, PLAN) if (folder / name).exists()), None)
    if file is None and not any(folder.glob("*.tar")):
        return False
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file else {}
        marks = {key: str(found[key]) for key in ("source", "options")}
    except (ValueError, KeyError, TypeError):
        marks = {"source": "", "options": "of a form that nobody knows"}
    if marks == plan.marks:
        return True
    if marks["options"] != plan.options:
        what = f"shards that were written otherwise ({printable(marks['options'])[:100]}, now {plan.options})"
    else:
        what = f"shards of images that have changed since, by name, size or time, below {printable(plan.root)}"
    raise DataError(f"{printable(folder)}: holds {what}; --overwrite replaces them")


def _whole_shards(folder: Path) -> dict[str, str]:
    """The checksums of the shards that need not be written: a kill may have come before a line was, or in its midst."""
    sums = {}
    if (folder / SUMS).exists():
        for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            if len(digest) == 64 and (folder / name).is_file():
                sums[name] = digest
        write_file(folder / SUMS, "".join(_line(name, digest) + "\n" for name, digest in sums.items()))
    if (folder / INDEX).exists():
        for shard in read_index(folder).shards:
            if shard.name in sums and (folder / shard.name).stat().st_size != shard.bytes:
                del sums[shard.name]
    return sums


def _line(name: str, digest: str) -> str:
    """As ``sha256sum -c`` reads it."""
    return f"{digest}  {name}"


def _pack(plan: Plan, shard: int, pool: ThreadPoolExecutor) -> bytes:
    """A shard as bytes, which depend on the images alone: neither on time nor on who writes it."""
    from webdataset.writer import TarWriter

    images = plan.images(shard)
    paths = [plan.source.paths[position] for _, position in images]
    file = io.BytesIO()
    writer = TarWriter(file, user="", group="", mtime=0, encoder=False)
    for (number, position), path, data in zip(images, paths, pool.map(_contents, paths), strict=True):
        key = member_name(number, str(path.relative_to(plan.root)))
        label = str(plan.source.labels[position]).encode()
        writer.write({"__key__": key, path.suffix[1:].lower(): data, "cls": label})
    writer.close()
    return file.getvalue()


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({reason(error)}); mend or remove it") from None


def _finish(plan: Plan, folder: Path, sums: dict[str, str]) -> ShardIndex:
    names = [shard_name(i) for i in range(len(plan))]
    shards = [
        Shard(name, len(plan.images(i)), (folder / name).stat().st_size, sums[name]) for i, name in enumerate(names)
    ]
    index = ShardIndex(plan.source.classes, shards, plan.source_print, plan.options)
    write_file(folder / SUMS, "".join(_line(name, sums[name]) + "\n" for name in names))
    write_file(folder / INDEX, index.dump())
    (folder / PLAN).unlink(missing_ok=True)
    return index
