"""Looking whether shards are what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from isonet.data.shards.index import INDEX, SUMS, Shard, ShardIndex

_CHUNK = 1 << 20  # bytes


def faults(folder: Path, index: ShardIndex, shard: Shard) -> Iterator[str]:
    """What is wrong with a shard of ``index``, in words; nothing if it is whole."""
    path = folder / shard.name
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            yield f"{path}: has {size:,} bytes of {shard.bytes:,}"
        elif _sha256(path) != shard.sha256:
            yield f"{path}: its bytes are not those that were written (SHA-256)"
    except FileNotFoundError:
        yield f"{path}: is not there"
    except OSError as error:
        yield f"{path}: cannot be read ({error.strerror})"


def faults_of_folder(folder: Path, index: ShardIndex) -> Iterator[str]:
    """Files that should not be there, and sums that are not those of the index."""
    names = {shard.name for shard in index.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in names:
            yield f"{path}: is not in {INDEX}"
    expected = "".join(f"{shard.sha256}  {shard.name}\n" for shard in index.shards)
    try:
        if (folder / SUMS).read_text(encoding="utf-8", errors="replace") != expected:
            yield f"{folder / SUMS}: is not what {INDEX} says"
    except OSError as error:
        yield f"{folder / SUMS}: cannot be read ({error.strerror})"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
