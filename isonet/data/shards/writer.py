"""Writes an image folder as tar shards: a kill costs one shard at most, and the bytes come out the same.

Shards are written one after the other, each whole under its name or not at all, and each is added to ``SHA256SUMS``
when it is on disk. ``plan.json`` describes from the start what all of them will hold; the index takes its place at the
end.

A shard has for each image ``NUMBER-NAME.EXT``, the bytes of its file, and ``NUMBER-NAME.cls``, its label in decimal.
Numbers count from 0 through all shards; NAME is made of the file's path, for people.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from isonet.data.folders import FolderSource
from isonet.data.random_streams import generator
from isonet.data.shards.index import INDEX, PLAN, ROWS, SUMS, ShardIndex, read_head, read_sums, sum_line
from isonet.data.shards.scan import Progress, make_index
from isonet.errors import DataError, printable
from isonet.files.storage import FolderLock, append_line, remove_leftovers, write_file

_THREADS = 16  # files read at a time: a network file system is slow for one request after another


@dataclass(frozen=True)
class Plan:
    """What to write: images by position in ``source``, in the order of their numbers, ``per_shard`` to a shard.

    marks: ``source``, a digest of the images, and ``options``, in words: existing shards must have the same ones.
    """

    root: Path
    source: FolderSource
    order: Sequence[int]
    per_shard: int
    marks: dict[str, str]

    def __len__(self) -> int:
        """The number of shards."""
        return -(-len(self.order) // self.per_shard)

    def images(self, shard: int) -> list[tuple[int, int]]:
        """(number, position in the source) of each image of a shard."""
        start = shard * self.per_shard
        return list(enumerate(self.order[start : start + self.per_shard], start))


def make_plan(source: FolderSource, root: Path, shuffle: bool, seed: int, per_shard: int) -> Plan:
    """Plan the shards of a split.

    root: its folder. shuffle: number the images in a random order, so that a shard has images of all classes.
    """
    count = len(source.paths)
    order = torch.randperm(count, generator=generator(seed, "write shards")) if shuffle else torch.arange(count)
    options = f"{per_shard} images a shard, {f'shuffled with seed {seed}' if shuffle else 'in order'}"
    digest = hashlib.sha256(json.dumps([options, list(source.classes)]).encode())
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, status in zip(source.paths, pool.map(Path.stat, source.paths), strict=True):
            line = f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(line.encode(errors="surrogateescape"))
    return Plan(root, source, order.tolist(), per_shard, {"source": digest.hexdigest(), "options": options})


def write_shards(
    plan: Plan,
    folder: Path,
    overwrite: bool,
    progress: Callable[..., Iterable[int]] = lambda todo, **_: todo,
    indexing: Progress = iter,
) -> ShardIndex:
    """Write those shards of ``plan`` that ``folder`` lacks, and their index.

    progress: iterates like tqdm over the numbers of the shards to write. indexing: iterates over all shards to index.
    overwrite: start anew whatever exists. Raises ``DataError`` rather than mix two plans (see
    ``check_plan``), and ``OSError`` if an image cannot be read or a shard not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder):
        remove_leftovers(folder)
        done = _begin(plan, folder, overwrite)
        todo = [number for number in range(len(plan)) if shard_name(number) not in done]
        with ThreadPoolExecutor(_THREADS) as pool:
            for number in progress(todo, total=len(plan), initial=len(plan) - len(todo)):
                data = _pack(plan, number, pool)
                write_file(folder / shard_name(number), data)
                line = sum_line(shard_name(number), hashlib.sha256(data).hexdigest())
                append_line(folder / SUMS, line.rstrip("\n"))
        return make_index(folder, plan.source.classes, indexing, plan.marks)


def shard_name(number: int) -> str:
    """The name of a shard, counted from 0."""
    return f"{number:06d}.tar"


def check_plan(plan: Plan, folder: Path) -> bool:
    """Whether ``folder`` has shards, all or some, of this plan. Raises ``DataError`` if it has shards of another."""
    if not any((folder / name).exists() for name in (INDEX, PLAN)) and not any(folder.glob("*.tar")):
        return False
    marks = read_head(folder / (INDEX if (folder / INDEX).exists() else PLAN))
    if all(marks.get(key) == plan.marks[key] for key in plan.marks):
        return True
    options = marks.get("options", "unknown")
    if options != plan.marks["options"]:
        what = f"shards that were written otherwise ({printable(options)[:100]}, now {plan.marks['options']})"
    else:
        what = f"shards of images that have changed since, by name, size or time, below {printable(plan.root)}"
    raise DataError(f"{printable(folder)}: has {what}; --overwrite replaces them")


def _begin(plan: Plan, folder: Path, overwrite: bool) -> set[str]:
    """The names of the shards that exist and are whole; writes the plan if there are none."""
    if not overwrite and check_plan(plan, folder):
        return _whole_shards(plan, folder)
    for file in [folder / INDEX, folder / PLAN, folder / SUMS, folder / ROWS, *folder.glob("*.tar")]:
        file.unlink(missing_ok=True)
    write_file(folder / PLAN, json.dumps(plan.marks) + "\n")
    return set()


def _whole_shards(plan: Plan, folder: Path) -> set[str]:
    """The shards that need not be written. Removes the checksums of all others, and a line that a kill truncated."""
    sizes = {shard["name"]: shard["bytes"] for shard in read_head(folder / INDEX).get("shards", [])}
    names = {shard_name(number) for number in range(len(plan))}
    sums = {}
    for name, digest in read_sums(folder).items():
        if name in names and (folder / name).is_file():
            size = (folder / name).stat().st_size
            if sizes.get(name, size) == size:
                sums[name] = digest
    write_file(folder / SUMS, "".join(map(sum_line, sums, sums.values())))
    return set(sums)


def _pack(plan: Plan, shard: int, pool: ThreadPoolExecutor) -> bytes:
    """A shard as bytes, which depend on the images alone: not on the time or the user."""
    images = plan.images(shard)
    paths = [plan.source.paths[position] for _, position in images]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        contents = pool.map(Path.read_bytes, paths)
        for (number, position), path, data in zip(images, paths, contents, strict=True):
            key = f"{number:09d}-{_readable(str(path.relative_to(plan.root)))}"
            label = str(plan.source.labels[position]).encode()
            for extension, content in sorted({path.suffix[1:].lower(): data, "cls": label}.items()):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size, member.mode = len(content), 0o444
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _readable(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", path.rpartition(".")[0])[-60:]
