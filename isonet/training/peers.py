"""When one process of a run fails: it says why, and the others end at once instead of waiting for it.

A process that fails leaves its reason in the store through which the processes found each other, which
outlives them all, and in the file from which torchrun takes what it prints at the end. The others notice
as soon as they wait for it, and the leading one repeats the reason and logs it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from isonet.errors import EXIT_STOPPED, EXIT_USER_ERROR, Stopped, UserError, printable
from isonet.training.meeting import wait_for
from isonet.training.stop import StopSignals
from isonet.training.world import World, devices_of, joined, world_of_environment

log = logging.getLogger("isonet")

_ROOT = "isonet/failure"  # key of the first process that failed, and of why
_LEADERS = "isonet/failure of the leader"
_GRACE_SECONDS = 5.0  # for torchrun to end a process whose peer is gone; it reports those that failed before that
_LEADER_SECONDS = 2.0  # for the leading process to come upon the same mistake

# What gloo's messages have in common, beside those exceptions that are torch.distributed's own
_GLOO = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout")


class PeerError(UserError):
    """Another process of the run has failed, or cannot be reached."""


@contextlib.contextmanager
def explain_lost_peers(world: World, stop: StopSignals | None = None) -> Iterator[None]:
    """Turn what torch raises when another process is gone into a ``PeerError`` that tells why it went."""
    try:
        yield
    except RuntimeError as error:
        if not world.launched or not (isinstance(error, dist.DistError) or any(w in str(error) for w in _GLOO)):
            raise
        why = (
            _read(_ROOT)
            or "the connection to another process is lost, which was probably killed: see torchrun's report"
        )
        end = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < end and not (stop and stop.received):
            time.sleep(0.05)
        raise PeerError(why) from error


@contextlib.contextmanager
def processes(gpus: str | None) -> Iterator[tuple[World, list[torch.device]]]:
    """Connect the processes of a run while the ``with`` block runs; gives this one and its devices.

    gpus: as in ``pick_devices``; launched processes take one each. A block within a block does nothing.
    An error in the block is told to the others; what all would print, the leading one prints alone.
    """
    world = world_of_environment()
    if not world.launched or dist.is_initialized():
        yield world, devices_of(world, gpus)
        return
    with joined(world, gpus) as devices, _told_to_peers(world):
        yield world, devices


@contextlib.contextmanager
def _told_to_peers(world: World) -> Iterator[None]:
    try:
        yield
    except Stopped:
        _say_once(world, EXIT_STOPPED)
        raise
    except PeerError:
        _say_once(world, EXIT_USER_ERROR)
        raise
    except Exception as error:
        _tell(world, error)
        raise


def _say_once(world: World, code: int) -> None:
    if not world.leads:
        raise SystemExit(code)


def _tell(world: World, error: Exception) -> None:
    """Leave the reason where others look for it, unless the leading process has come upon the same."""
    text = f"{'' if isinstance(error, UserError) else type(error).__name__ + ': '}{printable(error)}"
    if world.leads:
        _write(_LEADERS, text)
    elif isinstance(error, UserError):
        if _read(_LEADERS, _LEADER_SECONDS) == text:
            raise SystemExit(EXIT_USER_ERROR)
        error.where = f"process {world.rank} on {socket.gethostname()}: "
    where = f"process {world.rank} on {socket.gethostname()} failed: "
    _write(_ROOT, where + text)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": where + text, "timestamp": int(time.time())}, file)


def _store() -> dist.Store | None:
    if not dist.is_available() or not dist.is_initialized():
        return None
    return dist.distributed_c10d._get_default_store()  # there is no public way to it


def _write(key: str, text: str) -> None:
    with contextlib.suppress(RuntimeError):
        if store := _store():
            store.set(key, text)


def _read(key: str, seconds: float = 0.2) -> str:
    """What is written there, or comes to be within so many ``seconds``; else nothing."""
    with contextlib.suppress(RuntimeError, TimeoutError):
        if store := _store():
            wait_for(store, key, seconds)
            return store.get(key).decode()
    return ""
