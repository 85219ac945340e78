"""The variables of torchrun, which only this module reads, and ``--gpus``. This module does not import torch."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from isonet.errors import DeviceError, UserError

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """One of the processes that a launcher has started.

    rank, size: the index of this process, and the number of processes of the run. local_rank, local_size: the same
    among the processes on this machine. address: host and port of the rendezvous. launcher: a name of the torchrun
    process on this machine that does not change when it restarts the ranks, "" for another launcher.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    launcher: str

    @property
    def where(self) -> str:
        """A description of the process, for messages."""
        return f"rank {self.rank} on {socket.gethostname()}"


def launch() -> Launch | None:
    """Return the ``Launch`` of this process, or None if no launcher started it.

    Raises ``UserError`` if one of the launcher's variables is missing or is not a number.
    """
    if not is_launched():
        return None
    try:
        rank, size, local_rank, local_size, port = (int(os.environ[name]) for name in _NUMBERS)
        address = f"{os.environ['MASTER_ADDR']}:{port}"
    except (KeyError, ValueError) as error:
        raise UserError(
            f"RANK and WORLD_SIZE are set as by torchrun, but another of its variables is missing or wrong ({error}): "
            "start the script with torchrun, or unset them"
        ) from None
    return Launch(rank, size, local_rank, local_size, address, _launcher())


def _launcher() -> str:
    """Name the torchrun process of this machine by its log folder, which it draws once for all restarts."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/attempt_RESTARTS/LOCAL_RANK/error.json
    return f"{socket.gethostname()} {Path(error_file).parents[2]}" if error_file else ""


def is_launched() -> bool:
    """Return whether a launcher started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_main() -> bool:
    """Return whether this process is rank 0, or the only process. It prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def processes_here() -> int:
    """Return the number of processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def parse_gpu_ids(text: str) -> list[int]:
    """Return the ids in ``text``: [7, 1] for ``"7,1"``. The weights are on the first GPU.

    Raises ``DeviceError`` if ``text`` is not a list of distinct ids.
    """
    ids = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in ids) or len(set(map(int, ids))) < len(ids):
        raise DeviceError(f"--gpus takes distinct ids separated by commas, such as 0,1; got {text!r}")
    return [int(part) for part in ids]
