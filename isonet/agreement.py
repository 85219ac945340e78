"""The facts that must be equal on all ranks of a run, and the error of each rank if one rank fails or differs.

A rank collects facts: names and values that must be equal on all ranks. It compares its own facts with the facts of
rank 0 and reports the first difference or error as one sentence. ``raise_reported`` raises an error from the reports of
all ranks. This module does not import torch.
"""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

import isonet
from isonet.config import flat
from isonet.config.file import shown
from isonet.config.keys import KEYS
from isonet.errors import RankError, UserError, printable
from isonet.launch import Launch

Facts = dict[str, Any]

# Remedies for a difference, which end the message
SAME_MACHINES = "all machines need the same code, the same software and the same kind of device"
SAME_COMMAND = "start all ranks with the same command"
SAME_CONFIG = "start all ranks with the same config"
SAME_DATA = "all ranks need the same data set (DATASET.ROOT, DATASET.NAME)"

_DECODERS = ("torchvision", "pillow")  # pixels may differ slightly between their versions


def software_facts() -> Facts:
    """Return the version of this code, a digest of its source files, and the versions of the image decoders."""
    folder, digest = Path(__file__).parent, hashlib.blake2b(digest_size=6)
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    own = {"the version of isonet": isonet.__version__, "the digest of isonet's source files": digest.hexdigest()}
    return own | {f"the version of {name}": package_version(name) for name in _DECODERS}


def package_version(package: str) -> str:
    """Return the version of an installed package, or a phrase if the package is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def config_facts(cfg: CfgNode) -> Facts:
    """Return the values of all keys except the keys that each rank may set for itself."""
    return {key: value for key, value in flat(cfg).items() if not KEYS[key].per_rank}


def report(error: Exception | None, own: Facts, where: str, reference: Facts, where_0: str, remedy: str) -> str:
    """Return this rank's report: the first difference from the facts of rank 0, else its error, else "".

    own, where: the facts and the name of this rank. reference, where_0: the facts and the name of rank 0. remedy: what
    the user can do about a difference. The comparison ignores facts that only one of the two ranks has, because a rank
    that fails collects fewer facts.
    """
    for name in reference:
        if name in own and own[name] != reference[name]:
            return f"{name} is {shown(own[name])} on {where}, and {shown(reference[name])} on {where_0}; {remedy}"
    if error is None:
        return ""
    return f"{where}{'' if isinstance(error, UserError) else f' failed: {type(error).__name__}'}: {printable(error)}"


def raise_reported(reports: Sequence[str], process: Launch, error: Exception | None) -> None:
    """Raise an error on every rank if one of ``reports`` is not empty.

    reports: the report of each rank, in the order of ranks. error: this rank's own error. Rank 0 raises its own error,
    and every rank raises its own error if it is no ``UserError``. In all other cases, a rank raises a ``RankError``
    with the first report that is not empty.
    """
    first = next((rank for rank, text in enumerate(reports) if text), None)
    if first is None:
        return
    if error is not None and (process.rank == 0 or not isinstance(error, UserError)):
        raise error
    raised = RankError(reports[first])
    raised.printed_here = process.rank == first and process.local_size < process.size
    raise raised from error
