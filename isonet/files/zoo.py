"""The authors' checkpoints (``isonet.published``), downloaded once into torch's hub cache.

A file gets its name there only when it is complete and has the network's weights. An interrupted download is resumed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from yacs.config import CfgNode

from isonet.errors import CheckpointError, StorageError, UserError
from isonet.files.checkpoint import Checkpoint, fitted
from isonet.files.run_folder import find_checkpoint
from isonet.files.storage import reason, write_file
from isonet.models.build import assemble
from isonet.published import PREFIX, PublishedNetwork, published

log = logging.getLogger("isonet")

URL_VARIABLE = "ISONET_ZOO_URL"  # environment variable: what precedes a file's id in the URL of a mirror
GOOGLE_DRIVE = "https://drive.google.com/uc?export=download&id="

_RETRIES = 3  # with growing pauses of some seconds in all
_STALLED_SECONDS = 30.0  # without a byte, after which the connection counts as lost


def zoo_file(entry: PublishedNetwork) -> Path:
    """Return the path of its checkpoint in torch's hub cache, whether or not it is there yet."""
    return Path(torch.hub.get_dir()) / "checkpoints" / f"isonet-{entry.name}.pt"


def zoo_url(entry: PublishedNetwork) -> str:
    """Return the URL of its checkpoint, on Google Drive or on the mirror that ``ISONET_ZOO_URL`` names."""
    return os.environ.get(URL_VARIABLE, GOOGLE_DRIVE) + entry.file_id


def open_checkpoint(cfg: CfgNode | None, ckpt: str) -> Checkpoint:
    """Read the checkpoint that ``--ckpt`` names: one of the zoo, or what ``find_checkpoint`` takes.

    A checkpoint of the zoo carries its config, as this project's own do.
    """
    if not ckpt.startswith(PREFIX):
        return Checkpoint.read(find_checkpoint(cfg, ckpt))
    entry = published(ckpt)
    weights = zoo_weights(entry)
    log.info("%s%s: %s, %.2f %% top-1 as its authors report", PREFIX, entry.name, entry.network, entry.top1)
    return Checkpoint(zoo_file(entry), {"model": weights, "config": entry.config().dump()})


def zoo_weights(entry: PublishedNetwork, retries: int = _RETRIES) -> dict[str, Tensor]:
    """Return the weights of ``entry``, on the CPU in float32; download its file if it is not in the cache yet.

    If several processes ask at once, one downloads and the others wait.

    retries: how often to reconnect after the connection is lost.

    Raises ``UserError`` if the file cannot be fetched, or does not have the weights of this network.
    """
    path = zoo_file(entry)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                if not path.is_file():  # otherwise another process has fetched it
                    _download(entry, path, retries)
        except UserError:
            raise
        except OSError as error:
            raise StorageError(f"{error.filename or path}: cannot be written ({reason(error)})") from None
    try:
        return _checked(entry, path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove the file, and the next run fetches it again") from None


def _checked(entry: PublishedNetwork, path: Path) -> dict[str, Tensor]:
    """Return the weights in ``path``, which must fit the network: the files have no published sizes or checksums."""
    with torch.device("meta"):  # only shapes
        network = assemble(entry.config())
    return fitted(network, Checkpoint.read(path).weights, path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from fetching ``path`` while the block runs; wait for one that does so now."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("waiting for another process that fetches %s", path)
        lock.acquire()
    except OSError:
        pass  # a file system without locks, where processes may fetch the file twice, or a folder that is not writable
    try:
        yield
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def _download(entry: PublishedNetwork, path: Path, retries: int) -> None:
    """Fetch the file of ``entry``, check it, and only then give it its name."""
    url, by_hand = zoo_url(entry), f"fetch {zoo_url(entry)} in a browser and save it as {path}"
    try:
        import gdown  # handles the pages that Google Drive shows before a download
    except ImportError:
        raise UserError(
            f"{PREFIX}{entry.name} is fetched by the package gdown: pip install 'isonet[zoo]'; or {by_hand}"
        ) from None
    log.info("fetching %s: %s", path, url)
    unchecked = path.with_name(f".{path.name}.unchecked")
    try:
        _transfer(gdown, url, unchecked, retries)
    except Exception as error:  # gdown raises many kinds for answers that it does not expect
        if isinstance(error, OSError) and error.errno:  # from the disk; errors of the network have no number
            raise
        why = f"{' '.join(str(error).split()) or type(error).__name__:.400}"
        raise CheckpointError(
            f"{url} could not be fetched ({why}); the same command resumes the download, or {by_hand}"
        ) from error
    try:
        _checked(entry, unchecked)
    except CheckpointError as error:
        is_page = unchecked.read_bytes()[:100].lstrip().startswith(b"<")
        unchecked.unlink()
        wrong = str(error).removeprefix(f"{unchecked}: ")
        what = "a web page" if is_page else f"no checkpoint of {entry.network}: it {wrong}"
        raise CheckpointError(f"{url} sent {what}; try again later, or {by_hand}") from None
    write_file(path, unchecked.read_bytes())
    unchecked.unlink()


def _transfer(gdown: Any, url: str, unchecked: Path, retries: int) -> None:
    """Download to ``unchecked``, as many bytes as the server announces, from where an earlier attempt stopped."""

    def fetch() -> None:
        quiet = not sys.stderr.isatty()
        options = {"use_cookies": False, "resume": True, "retries": retries, "timeout": _STALLED_SECONDS}
        gdown.download(url, str(unchecked), quiet=quiet, **options)

    def parts() -> dict[Path, int]:
        return {part: part.stat().st_size for part in unchecked.parent.glob(f"{unchecked.name}*.part")}

    before = parts()
    try:
        fetch()
    except gdown.DownloadError as error:
        # Errors of the network have a cause. Without one, the server does not resume the parts, or they are complete
        if error.__cause__ or type(error) is not gdown.DownloadError or not before or parts() != before:
            raise
        for part in before:
            part.unlink()
        fetch()
