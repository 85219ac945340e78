"""The authors' checkpoints (``isonet.published``), downloaded once into torch's hub cache.

A file receives its name in the cache only when it is complete and has the network's weights.
"""

import logging
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from isonet.errors import CheckpointError, UserError
from isonet.extras import install
from isonet.files.checkpoint import Checkpoint, fitted
from isonet.files.download import STALLED_SECONDS, check_size, download_folder
from isonet.files.run_folder import find_checkpoint
from isonet.files.storage import write_file
from isonet.models.build import assemble
from isonet.published import PREFIX, PublishedNetwork, published

log = logging.getLogger("isonet")

URL_VARIABLE = "ISONET_ZOO_URL"  # environment variable: what precedes a file's id in the URL of a mirror
GOOGLE_DRIVE = "https://drive.google.com/uc?export=download&id="

_RETRIES = 3  # with growing pauses, some seconds in total
_LARGEST = 4  # times the size of the float32 weights; a file with the state of an optimizer has twice this size


def zoo_file(entry: PublishedNetwork) -> Path:
    """Return the path of the checkpoint of ``entry`` in torch's hub cache, whether it exists or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / f"isonet-{entry.name}.pt"


def open_checkpoint(cfg: CfgNode | None, ckpt: str) -> Checkpoint:
    """Read the checkpoint that ``--ckpt`` names, in the zoo or as in ``find_checkpoint``.

    A checkpoint of the zoo contains its config, like the checkpoints of this project.
    """
    if not ckpt.startswith(PREFIX):
        return Checkpoint.read(find_checkpoint(cfg, ckpt))
    entry = published(ckpt)
    weights = zoo_weights(entry)
    log.info("%s%s: %s, %.2f %% top-1 as its authors report", PREFIX, entry.name, entry.network, entry.top1)
    return Checkpoint(zoo_file(entry), {"model": weights, "config": entry.config().dump()})


def zoo_weights(entry: PublishedNetwork, retries: int = _RETRIES) -> dict[str, Tensor]:
    """Return the weights of ``entry``, on the CPU in float32. Download its file if it is not in the cache.

    If several processes call this simultaneously, one downloads and the others wait.

    retries: the number of attempts to reconnect and resume the download after the connection is lost.

    Raises ``UserError`` if the file cannot be downloaded, or does not have the weights of this network.
    """
    path = zoo_file(entry)
    if not path.is_file():
        with download_folder(path) as folder:
            if not path.is_file():  # otherwise another process has fetched it
                _download(entry, path, folder, retries)
    try:
        return _checked(entry, path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove the file, and the next run fetches it again") from None


def _network(entry: PublishedNetwork) -> nn.Module:
    with torch.device("meta"):  # only shapes
        return assemble(entry.config())


def _checked(entry: PublishedNetwork, path: Path) -> dict[str, Tensor]:
    """Return the weights in ``path``, which must fit the network: the files have no published sizes or checksums."""
    return fitted(_network(entry), Checkpoint.read(path).weights, path)


def _download(entry: PublishedNetwork, path: Path, folder: Path, retries: int) -> None:
    """Download the file of ``entry`` into ``folder``, check it, and then give it its name."""
    url = os.environ.get(URL_VARIABLE, GOOGLE_DRIVE) + entry.file_id
    by_hand = f"fetch {url} in a browser and save it as {path}"
    try:
        import gdown  # handles the pages that Google Drive shows before a download
    except ImportError:
        raise UserError(f"{PREFIX}{entry.name} needs the package gdown: {install('zoo')}; or {by_hand}") from None
    limit = _LARGEST * sum(weight.numel() * 4 for weight in _network(entry).state_dict().values())
    log.info("fetching %s: %s", path, url)
    unchecked, quiet = folder / path.name, not sys.stderr.isatty()
    try:
        gdown.download(
            url, str(unchecked), quiet, use_cookies=False, timeout=STALLED_SECONDS, retries=retries,
            progress=lambda received, announced: check_size(max(received, announced or 0), limit),
        )  # fmt: skip
        _checked(entry, unchecked)
    except Exception as error:  # gdown raises many kinds for answers that it does not expect
        why = f"{' '.join(str(error).removeprefix(f'{unchecked}: ').split()) or type(error).__name__:.400}"
        raise CheckpointError(
            f"no checkpoint of {entry.network} could be fetched from {url} ({why}): try again later, or {by_hand}"
        ) from error
    write_file(path, unchecked.read_bytes())
