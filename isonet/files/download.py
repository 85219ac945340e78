"""Downloads files of a limited size, so that an endless response does not fill the disk."""

import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

STALLED_SECONDS = 30.0  # the time without data after which the connection counts as lost
_CHUNK = 1 << 20


@contextmanager
def download_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` for its download, and remove the folder afterwards.

    If several processes call this function for the same ``path``, they enter the ``with`` block one after the other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{path.name}.", ".part"
    lock = path.with_name(f"{prefix}lock")
    with FileLock(lock):
        for left in path.parent.glob(f"{prefix}*{suffix}"):  # left by a process that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(suffix, prefix, path.parent) as folder:
            yield Path(folder)
        lock.unlink(missing_ok=True)


def check_size(received: int, limit: int) -> None:
    """Raise ``OSError`` for a response of more than ``limit`` bytes."""
    if received > limit:
        raise OSError(f"the response exceeds {limit / 1e6:,.0f} MB, the largest possible size of the file")


def fetch(url: str, path: Path, limit: int) -> None:
    """Save the response of ``url`` as ``path``.

    limit: the largest number of bytes. Raises ``OSError``, or ``HTTPException`` if the connection breaks off.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "isonet"})
    with (
        urllib.request.urlopen(request, timeout=STALLED_SECONDS) as response,
        path.open("wb") as file,
        tqdm(total=response.length, desc=path.name, unit="B", unit_scale=True, disable=None) as bar,
    ):
        check_size(response.length or 0, limit)
        while chunk := response.read(_CHUNK):
            check_size(file.tell() + len(chunk), limit)
            file.write(chunk)
            bar.update(len(chunk))
