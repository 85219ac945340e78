"""Lists the images and labels in a tar shard of any origin.

The key of a member is its name up to the first dot of the base name. Members of a shard with the same key are one
sample, as in the webdataset library. The image is the member with an image's extension, such as ``jpg`` or ``webp``.
The label is the number in the member ``cls``, or the number under ``label`` or ``cls`` in the member ``json``.
"""

import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np

from isonet.data.decode import size_in_header
from isonet.data.faults import ImageError
from isonet.data.formats import IMG_EXTENSIONS
from isonet.errors import DataError, printable

ROW = np.dtype([("offset", "<i8"), ("size", "<u4"), ("label", "<u4")])  # an image's bytes in its shard, and its label
SIZED_ROW = np.dtype([*ROW.descr, ("width", "<u4"), ("height", "<u4")])  # pixels; 0 if the image cannot be read
MAX_LABEL = 1_000_000

_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)")  # key and extensions, as webdataset splits them
_METADATA = re.compile(r"__[^/]*__($|/)")  # members that webdataset ignores

# Reasons why samples are odd, for a warning with the number of samples and an example
_INCOMPLETE = (
    f"are ignored: they lack an image ({', '.join(IMG_EXTENSIONS)}) or a label (a number in .cls, or under label "
    "or cls in .json)"
)
_MERGED = (
    "have several images, and only the first is used: names are split at the first dot, so photo.v1.jpg and "
    "photo.v2.jpg are one sample; rename the files to make them two samples"
)

_NO_FILE = "are ignored: they are links, sparse files, or files without an ending"

Part = tuple[int, int]  # offset and size of a member's bytes
Oddities = defaultdict[str, list[str]]  # for each reason, the samples that are odd


def require_preadv() -> None:
    """Raise ``DataError`` on systems such as Windows, where Python cannot read a file at an offset (``os.preadv``)."""
    if not hasattr(os, "preadv"):
        raise DataError("tar shards need os.preadv, which Python lacks on Windows: read the image folder instead")


def scan_shard(path: Path, oddities: Oddities, row_type: np.dtype = ROW) -> np.ndarray:
    """Return the images of a shard in its order: ``ROW`` or ``SIZED_ROW`` (N,).

    Raises ``DataError`` if it is not a whole tar file.
    """
    rows: list[tuple[int, ...]] = []
    try:
        with path.open("rb") as file:
            for key, members in groupby(_members(file, path.name, oddities), key=lambda member: member[0]):
                parts: dict[str, Part] = {}
                for _, extension, part in members:
                    if extension in parts:
                        raise tarfile.ReadError(f"it has two members {key}.{extension}")
                    parts[extension] = part
                if row := _row(file, parts, f"{key} in {path.name}", oddities):
                    rows.append((*row, *_pixels(file, row)) if row_type == SIZED_ROW else row)
        return np.array(rows, row_type)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(
            f"{printable(path)}: cannot be read as a tar file ({printable(why)}); if it is compressed, unpack it first"
        ) from None


def _members(file: BinaryIO, shard: str, oddities: Oddities) -> Iterator[tuple[str, str, Part]]:
    """Yield key, extension and ``Part`` of each member of a tar file that is a plain file with an extension."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        at = 0
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # otherwise all members stay in memory
            if member.size < 0 or archive.offset <= at:
                raise tarfile.ReadError(f"the header of {member.name} makes no sense")
            at = archive.offset
            if member.isdir() or _METADATA.match(member.name) or os.path.basename(member.name).startswith("."):
                continue
            split = _NAME.fullmatch(member.name)
            if split and member.isreg() and not member.issparse():
                yield split[1], split[2].lower(), (member.offset_data, member.size)
            else:
                oddities[_NO_FILE].append(f"{member.name} in {shard}")
        if os.pread(file.fileno(), 512, archive.offset).strip(b"\0"):  # tarfile stops here without an error
            raise tarfile.ReadError(f"there is no header at byte {archive.offset:,}")


def _row(file: BinaryIO, parts: dict[str, Part], sample: str, oddities: Oddities) -> tuple[int, int, int] | None:
    """Return offset, size and label of a sample's image, or None if the sample has no image or no label."""
    images = [extension for extension in parts if f".{extension}".endswith(IMG_EXTENSIONS)]
    images.sort(key=lambda extension: "." in extension)  # photo.jpg before photo.v1.jpg
    if len(images) > 1:
        oddities[_MERGED].append(f"{sample} ({', '.join(images)})")
    for image in images[:1]:
        stem = image[: image.rfind(".") + 1]  # "v1." of v1.jpg, whose label may be v1.cls
        names = [name for name in (f"{stem}cls", f"{stem}json", "cls", "json") if name in parts]
        label = _label(file, names[0], parts[names[0]]) if names else None
        if label is not None:
            return *parts[image], label
    oddities[_INCOMPLETE].append(sample)
    return None


def _pixels(file: BinaryIO, row: tuple[int, int, int]) -> tuple[int, int]:
    """Return width and height of an image, or zeros if it cannot be read."""
    try:
        return size_in_header(os.pread(file.fileno(), row[1], row[0]), Path(file.name))
    except ImageError:
        return 0, 0


def _label(file: BinaryIO, name: str, part: Part) -> int | None:
    offset, size = part
    data = os.pread(file.fileno(), min(size, 1 << 20), offset)
    try:
        fields = json.loads(data) if name.endswith("json") else {"label": int(data)}
        label = fields.get("label", fields.get("cls"))
    except (ValueError, AttributeError, RecursionError):
        return None
    return label if type(label) is int and 0 <= label < MAX_LABEL else None
