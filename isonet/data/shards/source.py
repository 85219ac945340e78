"""Images of tar shards, each read by its offset."""

from __future__ import annotations

import contextlib
import logging
import os
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from isonet.data.shards.index import TOOL, ShardIndex, read_index, read_sums
from isonet.data.shards.scan import require_preadv
from isonet.data.sources import EncodedSource
from isonet.errors import DataError, printable

log = logging.getLogger("isonet")

MAX_OPEN = 64  # shards that a process keeps open


def open_shards(folder: Path, classes: Sequence[str] | None = None) -> ShardSource:
    """Return the images of a folder of shards. Labels are positions in ``classes``, by default the index's classes."""
    require_preadv()
    return ShardSource(folder, read_index(folder)).relabelled(classes, folder)


class ShardSource(EncodedSource):
    """Images of the shards in ``folder``, in the order of ``index``, with its classes and labels.

    Reading raises ``DataError`` if the bytes do not match the index. DATASET.ON_ERROR does not ignore this error.
    """

    def __init__(self, folder: Path, index: ShardIndex) -> None:
        self.folder = folder
        self.index = index
        self.classes = index.classes
        self.labels = index.rows["label"].astype(np.int64)
        self._ends = [*accumulate(shard.images for shard in index.shards)]
        self._open: dict[str, int] = {}  # file descriptors, least recently read first

    def encoded(self, index: int) -> tuple[bytearray, str]:
        shard = self.index.shards[bisect_right(self._ends, index)]
        offset, size, *_ = self.index.rows[index].item()
        header, data = bytearray(512), bytearray(size)
        try:
            descriptor = self._descriptor(shard.name)
            read = os.preadv(descriptor, [header, data], offset - 512)
            name, stored = _name_and_size(header)
            if stored != size or read < 512 + size or os.fstat(descriptor).st_size != shard.bytes:
                raise ValueError(f"it is not the file that was indexed, which has image {index} at byte {offset:,}")
        except (OSError, tarfile.TarError, ValueError) as error:
            why, path = getattr(error, "strerror", None) or error, self.folder / shard.name
            raise DataError(
                f"{printable(path)}: cannot be read ({printable(why)}); {TOOL} verify FOLDER lists what is damaged"
            ) from None
        return data, f"{self.folder}/{shard.name}/{name}"

    def warn_if_enlarged(self, needed: int) -> None:
        """Log a warning if the images were stored with a shorter side of fewer pixels than a transform resizes to."""
        stored = self.index.short_side
        if 0 < stored < needed:
            log.warning(
                "%s: the images are stored with a short side of %d pixels, and are enlarged to %d: write the shards "
                "with --short-side %d or more for the published preprocessing",
                printable(self.folder), stored, needed, needed,
            )  # fmt: skip

    def names(self) -> bytes:
        sums = read_sums(self.folder)  # checksums of the content, which image folders do not have
        return str([(shard, sums.get(shard.name)) for shard in self.index.shards]).encode() + self.index.rows.tobytes()

    def _descriptor(self, name: str) -> int:
        """Return a file descriptor of a shard. A forked process may use it too: ``os.preadv`` changes no position."""
        descriptor = self._open.pop(name, None)
        if descriptor is None:
            if len(self._open) >= MAX_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = os.open(self.folder / name, os.O_RDONLY)
        self._open[name] = descriptor
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a copy, e.g. in a spawned process, opens its own files

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)


def _name_and_size(header: bytearray) -> tuple[str, int]:
    """Return the name and the size in the header of a tar member. Raises ``TarError`` if its checksum is wrong."""
    if header[156:157] == b"0" and header[345:346] == b"\0":  # a plain file, whose name is in one field
        with contextlib.suppress(ValueError):  # a number that is not octal
            checksum = int(header[148:156].strip(b" \0"), 8)  # the sum of all bytes, with spaces in its own place
            if sum(header) - sum(header[148:156]) + 8 * ord(" ") == checksum:
                name, size = header[:100].partition(b"\0")[0], int(header[124:136].strip(b" \0"), 8)
                return name.decode(errors="surrogateescape"), size
    member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")  # takes many times as long
    return member.name, member.size
