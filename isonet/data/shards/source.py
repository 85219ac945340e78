"""Images of tar shards, each read by its offset."""

from __future__ import annotations

import os
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from isonet.data.shards.index import TOOL, ShardIndex, read_index, read_sums
from isonet.data.shards.scan import require_pread
from isonet.data.sources import EncodedSource
from isonet.errors import DataError, printable

MAX_OPEN = 64  # shards that a process keeps open


def open_shards(folder: Path, classes: Sequence[str] | None = None) -> ShardSource:
    """Return the images of a folder of shards. Labels are positions in ``classes``, by default the index's classes."""
    require_pread()
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
        self._open: dict[Path, int] = {}  # file descriptors, least recently read first

    def encoded(self, index: int) -> tuple[bytes, Path]:
        shard = self.index.shards[bisect_right(self._ends, index)]
        path = self.folder / shard.name
        offset, size, _ = self.index.rows[index].item()
        try:
            descriptor = self._descriptor(path)
            data = os.pread(descriptor, 512 + size, offset - 512)
            header = tarfile.TarInfo.frombuf(data[:512], "utf-8", "surrogateescape")  # raises if it is no header
            if header.size != size or len(data) < 512 + size or os.fstat(descriptor).st_size != shard.bytes:
                raise ValueError(f"it is not the file that was indexed, which has image {index} at byte {offset:,}")
        except (OSError, tarfile.TarError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise DataError(
                f"{printable(path)}: cannot be read ({printable(why)}); {TOOL} verify FOLDER lists what is damaged"
            ) from None
        return data[512:], Path(f"{path}/{header.name}")  # for messages only

    def names(self) -> bytes:
        sums = read_sums(self.folder)  # checksums of the content, which image folders do not have
        return str([(shard, sums.get(shard.name)) for shard in self.index.shards]).encode() + self.index.rows.tobytes()

    def _descriptor(self, path: Path) -> int:
        """Return a file descriptor of a shard. A forked process may use it too: ``os.pread`` changes no position."""
        descriptor = self._open.pop(path, None)
        if descriptor is None:
            if len(self._open) >= MAX_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = os.open(path, os.O_RDONLY)
        self._open[path] = descriptor
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a copy, e.g. in a spawned process, opens its own files

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)
