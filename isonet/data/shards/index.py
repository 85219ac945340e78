"""The index of a folder of tar shards: where each image lies, and its label.

A folder holds ``*.tar``, and beside them ``index.json`` (classes and shards), ``index.bin`` (``ROW`` for each image,
shard after shard) and ``SHA256SUMS`` of all these files. ``index.json`` is written last: a folder that has it is
complete.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isonet.errors import DataError, printable
from isonet.files.storage import write_file

INDEX, ROWS, SUMS, PLAN = "index.json", "index.bin", "SHA256SUMS", "plan.json"
FORMAT = "isonet shards 2"  # a former version, 1, had no offsets
ROW = np.dtype([("offset", "<i8"), ("size", "<u4"), ("label", "<u4")])  # of an image's bytes in its shard
WRITE_COMMAND = "python -m isonet.tools.shards write FOLDER"
INDEX_COMMAND = "python -m isonet.tools.shards index FOLDER"
VERIFY_COMMAND = "python -m isonet.tools.shards verify FOLDER"

SHARD_NAME = re.compile(r"[^/.\x00-\x1f][^/\x00-\x1f]*\.tar")  # of a file in the folder itself, not hidden


@dataclass(frozen=True)
class Shard:
    """A tar file: its name, number of images and size in bytes."""

    name: str
    images: int
    bytes: int


@dataclass(frozen=True)
class ShardIndex:
    """classes: names of the labels. rows: ``ROW`` (N,). source, options: what the shards were written from, and how."""

    classes: Sequence[str]
    shards: Sequence[Shard]
    rows: np.ndarray
    source: str
    options: str

    def save(self, folder: Path, sums: dict[str, str]) -> None:
        """Write the index beside the shards whose checksums are ``sums``. Raises ``StorageError``."""
        head = {"format": FORMAT, "options": self.options, "source": self.source, "classes": list(self.classes)}
        text = json.dumps({**head, "shards": [asdict(shard) for shard in self.shards]}, indent=1) + "\n"
        files = {ROWS: self.rows.tobytes(), INDEX: text.encode()}
        sums = {**sums, **{name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
        (folder / INDEX).unlink(missing_ok=True)  # a former index does not describe the new rows
        write_file(folder / ROWS, files[ROWS])
        write_file(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
        write_file(folder / INDEX, files[INDEX])
        (folder / PLAN).unlink(missing_ok=True)


def read_sums(folder: Path) -> dict[str, str]:
    """The checksum of each file that ``SHA256SUMS`` lists; empty if there is no such file."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def read_head(path: Path) -> dict[str, Any]:
    """The content of ``index.json``, in any format, or of ``plan.json``; empty if it is not readable."""
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return head if isinstance(head, dict) else {}


def check_complete(folder: Path) -> None:
    """Raise ``DataError`` if a write of shards to ``folder`` was interrupted."""
    if (folder / PLAN).exists():
        raise DataError(f"{printable(folder)}: its shards are not complete; continue with {WRITE_COMMAND}")


def read_index(folder: Path) -> ShardIndex:
    """Read the index of a folder of shards.

    Raises ``DataError``, with the command that helps, if the folder is incomplete, has no index or a damaged one.
    """
    if not (folder / INDEX).exists():
        check_complete(folder)
        raise DataError(
            f"{printable(folder)}: there are no shards, or they have no index; write shards with {WRITE_COMMAND}, or "
            f"index those that are there with {INDEX_COMMAND}"
        )
    try:
        head = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if head["format"] != FORMAT:
            raise ValueError(f"its format is {head['format']!a:.60}, not '{FORMAT}'")
        return _checked(head, np.frombuffer((folder / ROWS).read_bytes(), ROW))
    except OSError as error:
        raise DataError(f"{printable(error.filename)}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{printable(folder / INDEX)}: is no index of shards ({printable(error)})"
        raise DataError(f"{what}; make it anew with {INDEX_COMMAND}") from None


def _checked(head: dict[str, Any], rows: np.ndarray) -> ShardIndex:
    """The index, if all of it makes sense: its names and numbers come from files, and are used to open and read others.

    Raises ``ValueError`` otherwise.
    """
    shards = [Shard(str(s["name"]), s["images"], s["bytes"]) for s in head["shards"]]
    if not all(SHARD_NAME.fullmatch(shard.name) for shard in shards):
        raise ValueError("a name is not that of a shard")
    if not all(type(n) is int and 0 <= n < 2**53 for shard in shards for n in (shard.images, shard.bytes)):
        raise ValueError("a size is not a number")
    classes = head["classes"]
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise ValueError("the names of its classes are not text, or not different")
    if not len(rows) or len(rows) != sum(shard.images for shard in shards):
        raise ValueError(f"{ROWS} has {len(rows)} images, {INDEX} {sum(shard.images for shard in shards)}")
    ends = np.repeat([shard.bytes for shard in shards], [shard.images for shard in shards])
    inside = (rows["offset"] >= 512) & (rows["offset"] + rows["size"] <= ends) & (rows["label"] < len(classes))
    if not inside.all():
        raise ValueError(f"an image of {ROWS} lies outside its shard, or its label is not a class")
    return ShardIndex(classes, shards, rows, str(head["source"]), str(head["options"]))
