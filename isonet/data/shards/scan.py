"""Reads what tar shards hold, whoever wrote them: to make their index, and to compare them with it.

Members of a shard with the same key, the part of the name up to the first dot of its base name, are one sample, as the
webdataset library defines it. The image is the member with the extension of one, such as ``jpg`` or ``webp``; its
label is the number in the member ``cls``, or the number under ``label`` or ``cls`` in the member ``json``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from tqdm import tqdm

from isonet.data.folders import IMG_EXTENSIONS
from isonet.data.shards.index import (
    INDEX,
    ROW,
    ROWS,
    SHARD_NAME,
    SUMS,
    Shard,
    ShardIndex,
    check_complete,
    read_head,
    read_sums,
)
from isonet.errors import DataError, printable

log = logging.getLogger("isonet")

CLASSES = "classes.txt"
MAX_LABEL = 1_000_000

_IMAGES = [extension[1:] for extension in IMG_EXTENSIONS]
_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)")  # key and extensions, as webdataset splits them
_METADATA = re.compile(r"__[^/]*__($|/)")  # members that webdataset ignores

# What is odd about samples, for a warning with their number and an example
_NO_IMAGE = f"have no image ({', '.join(_IMAGES)}) and are ignored"
_NO_LABEL = "have no label (a number in .cls, or under label or cls in .json) and are ignored"
_MERGED = (
    "have several images, and only the first is used: names are split at their first dot, so that photo.v1.jpg and "
    "photo.v2.jpg are one sample; rename the files if they are to be two"
)

Part = tuple[int, int]  # offset and size of a member's bytes
Oddities = defaultdict[str, list[str]]  # the samples that are odd in each way
T = TypeVar("T")


def progress(items: Iterable[T], what: str) -> Iterable[T]:
    """Iterate with a progress bar; in a file, where each state of it is a line, it moves once a minute."""
    return tqdm(items, desc=what, unit="shard", mininterval=0.1 if sys.stderr.isatty() else 60.0)


def make_index(
    folder: Path,
    classes: Sequence[str] | None = None,
    marks: dict[str, str] | None = None,
    sums: dict[str, str] | None = None,
) -> ShardIndex:
    """Make the index of the shards in ``folder`` from their members, and save it. The caller holds the folder's lock.

    classes: names of the labels; by default the lines of ``classes.txt``, else the names in a former index, else the
    numbers. marks: ``source`` and ``options`` of the index; by default those of a former index. sums: known checksums,
    beside those that ``SHA256SUMS`` lists. Logs warnings about odd samples. Raises ``DataError`` for shards that cannot
    be used.
    """
    files, head, known = shard_files(folder), read_head(folder / INDEX), {**read_sums(folder), **(sums or {})}
    if marks is None:
        check_complete(folder)
        marks = {"source": str(head.get("source", "")), "options": str(head.get("options", "written elsewhere"))}
    oddities: Oddities = defaultdict(list)
    shards, rows, sums = [], [], {}
    for file in progress(files, f"indexing {folder}"):
        rows.append(scan_shard(file, oddities))
        shards.append(Shard(file.name, len(rows[-1]), file.stat().st_size))
        sums[file.name] = known.get(file.name) or sha256_of(file)
    for odd, samples in oddities.items():
        log.warning("%s: %d samples %s; e.g. %s", printable(folder), len(samples), odd, printable(samples[0]))
    table = np.concatenate(rows)
    if not len(table):
        raise DataError(f"{printable(folder)}: no sample of its shards has both an image and a label")
    needed = int(table["label"].max()) + 1
    if classes is None:
        listed = read_classes(folder / CLASSES) if (folder / CLASSES).exists() else head.get("classes")
        classes = listed or [str(label) for label in range(needed)]
    if len(classes) < needed:
        raise DataError(f"{printable(folder)}: has the label {needed - 1}, but there are only {len(classes)} classes")
    index = ShardIndex(classes, shards, table, **marks)
    index.save(folder, sums)
    return index


def shard_files(folder: Path) -> list[Path]:
    """The shards in ``folder``, sorted by name. Raises ``DataError`` if there are none."""
    shards = [file for file in sorted(folder.iterdir()) if SHARD_NAME.fullmatch(file.name)]
    if not shards:
        raise DataError(f"{printable(folder)}: there are no shards (*.tar; unpack compressed ones with gunzip)")
    return shards


def scan_shard(path: Path, oddities: Oddities) -> np.ndarray:
    """The images of a shard, in its order: ``ROW`` (N,). Raises ``DataError`` for what is no whole tar file."""
    rows = []
    try:
        with path.open("rb") as file:
            for key, members in groupby(_members(file), key=lambda member: member[0]):
                parts: dict[str, Part] = {}
                for _, extension, part in members:
                    if extension in parts:
                        raise tarfile.ReadError(f"it has two members {key}.{extension}")
                    parts[extension] = part
                if row := _row(file, parts, f"{key} in {path.name}", oddities):
                    rows.append(row)
        return np.array(rows, ROW)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(
            f"{printable(path)}: cannot be read as a tar file ({printable(why)}); if it is compressed, unpack it first"
        ) from None


def _members(file: BinaryIO) -> Iterator[tuple[str, str, Part]]:
    """Key, extension, and place of each member of a tar file that is a plain file, with an extension."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        at = 0
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else all of them stay in memory
            if member.size < 0 or archive.offset <= at:
                raise tarfile.ReadError(f"the header of {member.name} makes no sense")
            at = archive.offset
            split = _NAME.fullmatch(member.name)
            if split and member.isreg() and not member.issparse() and not _METADATA.match(member.name):
                yield split[1], split[2].lower(), (member.offset_data, member.size)
        if os.pread(file.fileno(), 512, archive.offset).strip(b"\0"):  # where tarfile stops without an error
            raise tarfile.ReadError(f"there is no header at byte {archive.offset:,}")


def _row(file: BinaryIO, parts: dict[str, Part], sample: str, oddities: Oddities) -> tuple[int, int, int] | None:
    """Offset, size and label of a sample's image; None if it has no image or no label."""
    images = [extension for extension in parts if extension.rpartition(".")[2] in _IMAGES]
    if not images:
        oddities[_NO_IMAGE].append(sample)
        return None
    image = next((extension for extension in images if "." not in extension), images[0])
    if len(images) > 1:
        oddities[_MERGED].append(f"{sample} ({', '.join(images)})")
    stem = image[: -len(image.rpartition(".")[2])]  # "v1." of v1.jpg, whose label may be v1.cls
    names = [name for name in (f"{stem}cls", f"{stem}json", "cls", "json") if name in parts]
    label = _label(file, names[0], parts[names[0]]) if names else None
    if label is None:
        oddities[_NO_LABEL].append(sample)
        return None
    return *parts[image], label


def _label(file: BinaryIO, name: str, part: Part) -> int | None:
    offset, size = part
    data = os.pread(file.fileno(), min(size, 1 << 20), offset)
    try:
        fields = json.loads(data) if name.endswith("json") else {"label": int(data)}
        label = fields.get("label", fields.get("cls"))
    except (ValueError, AttributeError, RecursionError):
        return None
    return label if type(label) is int and 0 <= label < MAX_LABEL else None


def read_classes(path: Path) -> list[str]:
    """The names in a file, one a line, in the order of the labels. Raises ``DataError``."""
    names = [line.strip() for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()]
    if not all(names) or len(set(names)) < len(names):
        line = next(n for n, name in enumerate(names) if not name or name in names[:n])
        raise DataError(f"{printable(path)}: line {line + 1} is empty, or repeats the name of a class")
    return names


def damage(folder: Path, index: ShardIndex) -> Iterator[str]:
    """What is wrong with the files in a folder of shards, in words: compares them with ``SHA256SUMS`` and the index."""
    sums, end = read_sums(folder), 0
    for shard in progress(index.shards, f"checking {folder}"):
        path, start, end = folder / shard.name, end, end + shard.images
        try:
            if sha256_of(path) != sums.get(shard.name):
                yield f"{path}: its SHA-256 is not that of {SUMS}"
            elif not np.array_equal(scan_shard(path, defaultdict(list)), index.rows[start:end]):
                yield f"{path}: its images or labels are not those of {INDEX}"
        except (OSError, DataError) as error:
            yield f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
    names = {shard.name for shard in index.shards}
    yield from (f"{path}: is not in {INDEX}" for path in shard_files(folder) if path.name not in names)
    for name in (ROWS, INDEX):
        if sha256_of(folder / name) != sums.get(name):
            yield f"{folder / name}: its SHA-256 is not that of {SUMS}"
    if (folder / CLASSES).exists() and read_classes(folder / CLASSES) != list(index.classes):
        yield f"{folder / CLASSES}: its classes are not those of {INDEX}"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises ``OSError``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
