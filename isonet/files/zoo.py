"""The authors' checkpoints: which there are, the config of each, and how one comes to this machine.

``zoo:IN1k-RISO18`` is a row of MODEL_ZOO.md. Its file is downloaded once, into torch's hub cache, and gets its name
there only when it is whole and holds the network's weights. A download that broke off goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import inspect
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

from isonet.config import load_cfg
from isonet.errors import CheckpointError, StorageError, UserError
from isonet.files.checkpoint import Checkpoint, fitted
from isonet.files.run_folder import find_checkpoint
from isonet.files.storage import reason, write_file
from isonet.models.build import assemble

log = logging.getLogger("isonet")

PREFIX = "zoo:"
URL_VARIABLE = "ISONET_ZOO_URL"  # in the environment: what stands before a file's id, where a mirror has the files
GOOGLE_DRIVE = "https://drive.google.com/uc?export=download&id="
NUM_CLASSES = 1000
DROPOUT_RATE = {False: 0.1, True: 0.4}  # as published, by ZooEntry.residual

_RETRIES = 3  # with growing pauses, of some seconds in all
_STALLED_SECONDS = 30.0  # without a byte, until the connection counts as lost


@dataclass(frozen=True)
class ZooEntry:
    """A published checkpoint.

    residual: an R-ISONet. dropout: trained with it. top1: percent on ImageNet, as its authors report it.
    file_id: Google Drive's name of the file.
    """

    depth: int
    residual: bool
    dropout: bool
    top1: float
    file_id: str

    @property
    def network(self) -> str:
        return f"{'R-' * self.residual}ISONet-{self.depth}"

    @property
    def name(self) -> str:
        """The config's name, and whether dropout was off."""
        return f"IN1k-{'R' * self.residual}ISO{self.depth}{'' if self.dropout else '-nodropout'}"

    @property
    def path(self) -> Path:
        """Where the file lies, or will."""
        return Path(torch.hub.get_dir()) / "checkpoints" / f"isonet-{self.name}.pt"

    @property
    def url(self) -> str:
        return os.environ.get(URL_VARIABLE, GOOGLE_DRIVE) + self.file_id

    def config(self) -> CfgNode:
        """The config that the network was trained with, as far as it describes network, loss and data set."""
        ison = {
            "DEPTH": self.depth,
            "TRANS_FUN": "bottleneck_transform" if self.depth >= 50 else "basic_transform",
            "ORTHO_COEFF": 3e-4 if (self.depth, self.residual) == (101, False) else 1e-4,
            "DROPOUT": self.dropout,
            "DROPOUT_RATE": DROPOUT_RATE[self.residual],
        }
        if self.residual:
            ison.update(HAS_ST=True, HAS_RES_MULTIPLIER=True, RES_MULTIPLIER=0.0)
        pairs = [item for key, value in ison.items() for item in (f"ISON.{key}", value)]
        return load_cfg(None, ["DATASET.NAME", "ILSVRC2012", "DATASET.NUM_CLASSES", NUM_CLASSES, *pairs])


_ENTRIES = (  # depth, residual, dropout, top1, file_id
    ZooEntry(18, False, False, 67.94, "1z055ncj4nFLwHGI8nWmI1e_pO83Etwe2"),
    ZooEntry(34, False, False, 70.45, "1XyhENR7lIdOL0_nVJg0wHcD1hjtOWapE"),
    ZooEntry(50, False, False, 70.73, "1s2Z81aS2XTMmOWNWQrQqrmWSmLZnSJK0"),
    ZooEntry(101, False, False, 70.38, "1tSJUyZEXhau-Z6djrumUiFiHqM0bV6HX"),
    ZooEntry(18, False, True, 68.10, "1eiLW4RqnFuZU2c8qtWd4UfOTyMZ3RFXi"),
    ZooEntry(34, False, True, 70.90, "1l6LzC2oXvRkPklhC0M_wOsZsBx-9zsqe"),
    ZooEntry(50, False, True, 71.20, "1_x3rWpfd6Fr_7gZZM0DO00Lv2GHRe5-G"),
    ZooEntry(101, False, True, 71.01, "1UznWiuWxazjizRhhZdtZNENFdhFW6ApG"),
    ZooEntry(18, True, False, 69.06, "1lrO9QC4GWBCH6ySGJY1p2-RTQJGZmYDo"),
    ZooEntry(34, True, False, 72.17, "1YG3F8mbxnvCbOVq7rxRyjoUpOqH1MFef"),
    ZooEntry(50, True, False, 74.20, "1U8wUUmJO_EeHVeV0z8oudbLV5k4ksQKJ"),
    ZooEntry(101, True, False, 75.44, "1ZeYStDgGhoXhjidjwBa2Jj51LIGTq4ll"),
    ZooEntry(18, True, True, 69.17, "1nNo0auR4q-Q04NZO8yHrFBNzIZu1XUGO"),
    ZooEntry(34, True, True, 73.43, "1x3r52HOUnwzO_CJYLzZ35X9C6sAuL47z"),
    ZooEntry(50, True, True, 76.18, "19KIBwTQs6kxu9kYAX5b3pTyaIkpsUMzl"),
    ZooEntry(101, True, True, 77.08, "1uh6gfMU7vp74Xa4ThgQMOItumob5gveq"),
)
ZOO = {entry.name: entry for entry in _ENTRIES}


def zoo_entry(name: str) -> ZooEntry:
    """The checkpoint ``name``, with or without ``zoo:``. Raises ``UserError`` where there is none."""
    name = name.removeprefix(PREFIX)
    if name not in ZOO:
        near = get_close_matches(name[:100], ZOO, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"there are {', '.join(ZOO)}"
        raise UserError(f"no checkpoint {PREFIX}{name:.100} in the zoo; {hint}")
    return ZOO[name]


def open_checkpoint(cfg: CfgNode | None, ckpt: str) -> Checkpoint:
    """Read what ``--ckpt`` names: a checkpoint of the zoo, or what ``find_checkpoint`` takes.

    A checkpoint of the zoo comes with its config, as this project's own do.
    """
    if not ckpt.startswith(PREFIX):
        return Checkpoint.read(find_checkpoint(cfg, ckpt))
    entry = zoo_entry(ckpt)
    weights = zoo_weights(entry)
    log.info("%s%s: %s, %.2f %% top-1 as its authors report", PREFIX, entry.name, entry.network, entry.top1)
    return Checkpoint(entry.path, {"model": weights, "config": entry.config().dump()})


def zoo_weights(entry: ZooEntry, retries: int = _RETRIES) -> dict[str, Tensor]:
    """The weights of ``entry``, on the CPU in float32; downloads its file where this machine does not have it yet.

    Several processes may ask at once: one downloads, the others wait. retries: after a connection is lost.
    Raises ``UserError`` where the file cannot be had, or is not what it should be.
    """
    path = entry.path
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path):
                if not path.is_file():  # else another process has fetched it
                    _download(entry, retries)
        except UserError:
            raise
        except OSError as error:
            raise StorageError(f"{error.filename or path}: cannot be written ({reason(error)})") from None
    try:
        return _checked(entry, path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove the file, and it is fetched again") from None


def _checked(entry: ZooEntry, path: Path) -> dict[str, Tensor]:
    """The weights in ``path``, which are the network's. Sizes or checksums of the files were never published."""
    with torch.device("meta"):  # shapes alone
        network = assemble(entry.config())
    return fitted(network, Checkpoint.read(path).weights, path)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from fetching ``path``; wait for one that does so now."""
    lock = path.with_name(f".{path.name}.lock")
    handle = os.open(lock, os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which fetches %s", path)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:  # without locks in the file system, the check of what was fetched must do
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
        yield
        lock.unlink(missing_ok=True)  # not before the file is there: a newcomer would take another lock
    finally:
        os.close(handle)


def _download(entry: ZooEntry, retries: int) -> None:
    """Fetch the file of ``entry``, check it, and only then give it its name."""
    gdown = _require_gdown(entry)
    log.info("fetching %s: %s", entry.path, entry.url)
    unchecked = entry.path.with_name(f".{entry.path.name}.unchecked")
    try:
        _transfer(gdown, entry, unchecked, retries)
    except Exception as error:  # gdown raises many a kind where a server answers what it does not expect
        if isinstance(error, OSError) and error.errno:  # the disk's; the network's have no number
            raise
        why = f"{' '.join(str(error).split()) or type(error).__name__:.400}"
        raise CheckpointError(
            f"{entry.url} could not be fetched ({why}); the same command goes on where it stopped, or {_by_hand(entry)}"
        ) from error
    try:
        _checked(entry, unchecked)
    except CheckpointError as error:
        is_page = unchecked.read_bytes()[:100].lstrip().startswith(b"<")
        unchecked.unlink()
        wrong = str(error).removeprefix(f"{unchecked}: ")
        what = "a web page" if is_page else f"no checkpoint of {entry.network}, for it {wrong}"
        raise CheckpointError(f"{entry.url} sent {what}; try again later, or {_by_hand(entry)}") from None
    write_file(entry.path, unchecked.read_bytes())
    unchecked.unlink()


def _transfer(gdown: Any, entry: ZooEntry, unchecked: Path, retries: int) -> None:
    """Download to ``unchecked``, all of it by the server's count, from where an earlier attempt stopped."""

    def parts() -> dict[Path, int]:
        return {part: part.stat().st_size for part in unchecked.parent.glob(f"{unchecked.name}*.part")}

    def show(done: int, total: int | None) -> None:
        bar.total = total
        bar.update(done - bar.n)

    def fetch() -> None:
        gdown.download(
            entry.url, str(unchecked), quiet=True, use_cookies=False, resume=True, progress=show, retries=retries,
            timeout=_STALLED_SECONDS,
        )  # fmt: skip

    before = parts()
    with tqdm(desc=entry.name, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        try:
            fetch()
        except gdown.DownloadError as error:
            if error.__cause__ or type(error) is not gdown.DownloadError or not before or parts() != before:
                raise
            for part in before:  # which the server does not go on with, or which lacks nothing
                part.unlink()
            fetch()


def _require_gdown(entry: ZooEntry) -> Any:
    """The library that knows Google Drive's questions before a download."""
    try:
        import gdown
    except ImportError:
        raise UserError(
            f"{PREFIX}{entry.name} is fetched by the package gdown: pip install 'isonet[zoo]'; or {_by_hand(entry)}"
        ) from None
    if "retries" not in inspect.signature(gdown.download).parameters:
        raise UserError(f"gdown is too old: pip install -U 'isonet[zoo]', or 'gdown>=6.3'; or {_by_hand(entry)}")
    return gdown


def _by_hand(entry: ZooEntry) -> str:
    return f"fetch {entry.url} in a browser and save it as {entry.path}"
