"""Downloads files of a limited size, so that an endless response does not fill the disk."""

import urllib.request
from pathlib import Path

from tqdm import tqdm

STALLED_SECONDS = 30.0  # the time without data after which the connection counts as lost
_CHUNK = 1 << 20


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
