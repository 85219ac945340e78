"""The index of a folder of tar shards: the location and the label of each image.

A folder contains the shards, ``*.tar``, and beside them ``index.json`` (classes and shards), ``index.bin`` (``ROW`` for
each image, shard after shard) and ``SHA256SUMS`` of all these files. ``index.json`` is written last, so a folder that
contains it is complete.
"""

import hashlib
import json
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from isonet.classes import read_names
from isonet.data.shards.scan import ROW, SIZED_ROW, Oddities, scan_shard
from isonet.errors import DataError, printable
from isonet.files.storage import write_file

log = logging.getLogger("isonet")

INDEX, ROWS, SUMS, PLAN, CLASSES = "index.json", "index.bin", "SHA256SUMS", "plan.json", "classes.txt"
FORMAT = "isonet shards 2"  # version 1 had no offsets
SMALLER = ("short_side", "quality")  # fields of index.json that only shards with smaller images have
TOOL = "python -m isonet.tools.shards"

SHARD_NAME = re.compile(r"[^/.\x00-\x1f][^/\x00-\x1f]*\.tar")  # a file in the folder itself, not hidden


@dataclass(frozen=True)
class Shard:
    """A tar file: its name, number of images and size in bytes."""

    name: str
    images: int
    bytes: int


@dataclass(frozen=True)
class ShardIndex:
    """The classes and shards of a folder, and the location of each image.

    classes: names of the labels. rows: ``ROW`` (N,), or ``SIZED_ROW`` if images were stored smaller. source: a digest
    of the image files that the shards were written from. options: the options of the writer, in words. short_side,
    quality: the options of ``Smaller``; 0 if the shards contain the files themselves.
    """

    classes: Sequence[str]
    shards: Sequence[Shard]
    rows: np.ndarray
    source: str
    options: str
    short_side: int = 0
    quality: int = 0

    def __str__(self) -> str:
        size = sum(shard.bytes for shard in self.shards) / 1e6
        images, classes, shards = (len(items) for items in (self.rows, self.classes, self.shards))
        return f"{images:,} images of {classes:,} classes in {shards:,} shards, {size:,.1f} MB"

    def save(self, folder: Path, sums: dict[str, str]) -> None:
        """Write the index beside the shards whose checksums are ``sums``. Raises ``StorageError``."""
        head = {"format": FORMAT, "options": self.options, "source": self.source, "classes": list(self.classes)}
        head |= {name: getattr(self, name) for name in SMALLER if self.short_side}
        text = json.dumps({**head, "shards": [asdict(shard) for shard in self.shards]}, indent=1) + "\n"
        files = {ROWS: self.rows.tobytes(), INDEX: text.encode()}
        sums = {**sums, **{name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
        known = read_sums(folder).items()  # the file may come with the shards and list other files, too
        sums |= {name: digest for name, digest in known if name not in sums and (folder / name).is_file()}
        (folder / INDEX).unlink(missing_ok=True)  # an earlier index does not describe the new rows
        write_file(folder / ROWS, files[ROWS])
        write_file(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
        write_file(folder / INDEX, files[INDEX])
        (folder / PLAN).unlink(missing_ok=True)


def read_sums(folder: Path) -> dict[str, str]:
    """Return the checksum of each file that ``SHA256SUMS`` lists, or an empty dictionary if there is no such file."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def read_head(path: Path) -> dict[str, Any]:
    """Return the content of ``index.json``, in any format, or of ``plan.json``. It is empty for an unreadable file."""
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return head if isinstance(head, dict) else {}


def check_complete(folder: Path) -> None:
    """Raise ``DataError`` if a write of shards to ``folder`` was interrupted."""
    if (folder / PLAN).exists():
        options = printable(read_head(folder / PLAN).get("options", "unknown"))[:100]
        how = f"continue with {TOOL} write FOLDER and the same options ({options})"
        raise DataError(f"{printable(folder)}: the shards are not complete; {how}")


def read_index(folder: Path) -> ShardIndex:
    """Read the index of a folder of shards.

    Raises ``DataError`` if the folder is incomplete, or if its index is missing or damaged. The message gives the
    command that helps.
    """
    if not (folder / INDEX).exists():
        check_complete(folder)
        raise DataError(
            f"{printable(folder)}: there are no shards, or they have no index; {TOOL} write FOLDER writes shards, "
            f"{TOOL} index FOLDER indexes existing ones"
        )
    try:
        head = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if head["format"] != FORMAT:
            raise ValueError(f"the format is {head['format']!a:.60}, not '{FORMAT}'")
        row_type = SIZED_ROW if head.get("short_side") else ROW
        return _checked(head, np.frombuffer((folder / ROWS).read_bytes(), row_type))
    except OSError as error:
        raise DataError(f"{printable(error.filename)}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{printable(folder / INDEX)} is not an index of shards ({printable(error)})"
        raise DataError(f"{what}; rebuild it with {TOOL} index FOLDER") from None


def _checked(head: dict[str, Any], rows: np.ndarray) -> ShardIndex:
    """Return the index if its names and numbers are valid. They are read from files, and used to open and read others.

    Raises ``ValueError`` if they are not valid.
    """
    shards = [Shard(str(s["name"]), s["images"], s["bytes"]) for s in head["shards"]]
    smaller = {name: head.get(name, 0) for name in SMALLER}
    counts = [*smaller.values(), *(count for shard in shards for count in (shard.images, shard.bytes))]
    if not all(SHARD_NAME.fullmatch(shard.name) for shard in shards):
        raise ValueError("a name is not a valid name of a shard")
    if not all(type(count) is int and 0 <= count < 2**53 for count in counts):
        raise ValueError("a size is not a number")
    classes = head["classes"]
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise ValueError("the class names are not text, or not distinct")
    if not len(rows) or len(rows) != sum(shard.images for shard in shards):
        raise ValueError(f"{ROWS} has {len(rows)} images, {INDEX} {sum(shard.images for shard in shards)}")
    ends = np.repeat([shard.bytes for shard in shards], [shard.images for shard in shards])
    inside = (rows["offset"] >= 512) & (rows["offset"] + rows["size"] <= ends) & (rows["label"] < len(classes))
    if not inside.all():
        raise ValueError(f"an image of {ROWS} is outside its shard, or its label is not a class")
    return ShardIndex(classes, shards, rows, str(head["source"]), str(head["options"]), **smaller)


def make_index(
    folder: Path,
    classes: Sequence[str] | None = None,
    marks: dict[str, Any] | None = None,
    sums: dict[str, str] | None = None,
) -> ShardIndex:
    """Make the index of the shards in ``folder`` from their members, and save it. The caller holds the folder's lock.

    classes: names of the labels; by default the lines of ``classes.txt``, else the names in an existing index, else the
    numbers. marks: fields of the index from ``source`` on; by default the values in an existing index. sums: checksums
    that are known in addition to ``SHA256SUMS``. Logs warnings about odd samples. Raises ``DataError`` if the shards
    cannot be used.
    """
    if marks is None:
        check_complete(folder)
    files, head, known = shard_files(folder), read_head(folder / INDEX), {**read_sums(folder), **(sums or {})}
    if head and not str(head.get("format")).startswith(FORMAT[:-1]):
        raise DataError(
            f"{printable(folder / INDEX)} was written by another program, and is not replaced: move it away"
        )
    if marks is None:
        marks = {"source": str(head.get("source", "")), "options": str(head.get("options", "written elsewhere"))}
        marks |= {name: head[name] for name in SMALLER if name in head}
    oddities: Oddities = defaultdict(list)
    shards, rows, sums = [], [], {}
    for file in progress(files, f"indexing {folder}"):
        rows.append(scan_shard(file, oddities, SIZED_ROW if marks.get("short_side") else ROW))
        shards.append(Shard(file.name, len(rows[-1]), file.stat().st_size))
        sums[file.name] = known.get(file.name) or sha256_of(file)
    for odd, samples in oddities.items():
        log.warning("%s: %d samples %s; e.g. %s", printable(folder), len(samples), odd, printable(samples[0]))
    table = np.concatenate(rows)
    if not len(table):
        raise DataError(f"{printable(folder)}: no sample of the shards has both an image and a label")
    needed = int(table["label"].max()) + 1
    if classes is None:
        listed = read_classes(folder / CLASSES) if (folder / CLASSES).exists() else head.get("classes")
        classes = listed or [str(label) for label in range(needed)]
    if len(classes) < needed:
        raise DataError(f"{printable(folder)} has the label {needed - 1}, but there are only {len(classes)} classes")
    index = ShardIndex(classes, shards, table, **marks)
    index.save(folder, sums)
    return index


def shard_files(folder: Path) -> list[Path]:
    """Return the shards in ``folder``, sorted by name. Raises ``DataError`` if there is no shard."""
    shards = [file for file in sorted(folder.iterdir()) if SHARD_NAME.fullmatch(file.name)]
    if not shards:
        raise DataError(f"{printable(folder)}: there are no shards (*.tar; unpack compressed ones with gunzip)")
    return shards


def read_classes(path: Path) -> list[str]:
    """Return the names in a file, one per line, in the order of the labels. Raises ``DataError``."""
    names = read_names(path)
    if not all(names) or len(set(names)) < len(names):
        line = next(n for n, name in enumerate(names) if not name or name in names[:n])
        raise DataError(f"{printable(path)}: line {line + 1} is empty, or repeats the name of a class")
    return names


def damage(folder: Path, index: ShardIndex) -> Iterator[str]:
    """Compare the files in a folder of shards with ``SHA256SUMS`` and the index, and yield a message for each fault."""
    sums, end = read_sums(folder), 0
    for shard in progress(index.shards, f"checking {folder}"):
        path, start, end = folder / shard.name, end, end + shard.images
        try:
            if sha256_of(path) != sums.get(shard.name):
                yield f"{path}: SHA-256 does not match {SUMS}"
            elif not np.array_equal(scan_shard(path, defaultdict(list), index.rows.dtype), index.rows[start:end]):
                yield f"{path}: images or labels do not match {INDEX}, but the checksum is right: index the shard again"
        except (OSError, DataError) as error:
            yield f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
    names = {shard.name for shard in index.shards}
    yield from (f"{path} is not in {INDEX}" for path in shard_files(folder) if path.name not in names)
    for name in (ROWS, INDEX):
        if sha256_of(folder / name) != sums.get(name):
            yield f"{folder / name}: SHA-256 does not match {SUMS}"
    if (folder / CLASSES).exists() and read_classes(folder / CLASSES) != list(index.classes):
        yield f"{folder / CLASSES}: classes do not match {INDEX}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raises ``OSError``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def progress(items: Iterable, what: str) -> tqdm:
    """Iterate with a progress bar, which is updated only once a minute if standard error is not a terminal."""
    return tqdm(items, desc=what, unit="shard", mininterval=0.1 if sys.stderr.isatty() else 60.0)
