"""What lies in a folder of shards: ``000000.tar`` ... , ``SHA256SUMS``, and ``index.json``, which is written last.

A shard holds for each image ``NUMBER-NAME.EXT``, the bytes of its file, and ``NUMBER-NAME.cls``, its label in
decimal. Numbers count from 0 through all shards; NAME is made of the file's path, for people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from isonet.errors import DataError, UserError, printable

INDEX, SUMS = "index.json", "SHA256SUMS"
FORMAT = "isonet shards 1"
DIGITS = 9  # of a number in a name
WRITE = "python -m isonet.tools.shards write FOLDER"

_SHARD_NAME = re.compile(r"[0-9]{6,}\.tar")


def require_webdataset() -> None:
    """Raise ``UserError`` where the library is not installed."""
    try:
        import webdataset  # noqa: F401
    except ImportError:
        raise UserError("shards need the package webdataset: pip install 'isonet[shards]', or webdataset") from None


@dataclass(frozen=True)
class Shard:
    name: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """source: what tells the images that were written from others. options: how they were written, in words."""

    classes: Sequence[str]
    shards: Sequence[Shard]
    source: str
    options: str

    @property
    def num_images(self) -> int:
        return sum(shard.images for shard in self.shards)

    @property
    def first_numbers(self) -> list[int]:
        """Of each shard the number of its first image."""
        return [0, *accumulate(shard.images for shard in self.shards)][:-1]

    def dump(self) -> str:
        head = {"format": FORMAT, "options": self.options, "source": self.source, "classes": list(self.classes)}
        return json.dumps({**head, "shards": [asdict(shard) for shard in self.shards]}, indent=1) + "\n"


def shard_name(number: int) -> str:
    """The name of the file, counted from 0."""
    return f"{number:06d}.tar"


def member_name(number: int, path: str) -> str:
    """The name of image ``number`` without its extension; ``path``: that of its file below the split's folder."""
    return f"{number:0{DIGITS}d}-{re.sub(r'[^A-Za-z0-9_-]', '_', path.rpartition('.')[0])[-60:]}"


def number_of(member: str) -> int:
    """The number of the image that a member of a shard belongs to; -1 for one of another name."""
    digits, dash, _ = member.partition("-")
    return int(digits) if dash and len(digits) == DIGITS and digits.isdecimal() else -1


def read_index(folder: Path) -> ShardIndex:
    """Raises ``DataError`` where the folder holds no shards, or not all of them."""
    path = folder / INDEX
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return _checked(found)
    except FileNotFoundError:
        begun = any(folder.glob("*.tar"))
        state = "its shards are not complete: go on with" if begun else "no shards are there: make them with"
        raise DataError(f"{printable(folder)}: {state} {WRITE}") from None
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{printable(path)}: is no index of shards ({printable(error)}); write them anew") from None


def _checked(found: dict[str, Any]) -> ShardIndex:
    """Everything that an index says comes from a file and leads to others."""
    if found["format"] != FORMAT:
        raise ValueError(f"of the format {found['format']!a:.60}, not {FORMAT}")
    shards = [Shard(str(s["name"]), s["images"], s["bytes"], str(s["sha256"])) for s in found["shards"]]
    for shard in shards:
        if not _SHARD_NAME.fullmatch(shard.name):
            raise ValueError(f"{shard.name!a:.60} is no name of a shard")
        if not all(type(n) is int and 0 < n < 2**53 for n in (shard.images, shard.bytes)):
            raise ValueError(f"{shard.name} holds no images, or what is no number of them")
    classes = found["classes"]
    if not shards or not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError("it names no shards, or no classes")
    return ShardIndex(classes, shards, str(found["source"]), str(found["options"]))
