"""How the processes of one start of a run find each other, and none of an earlier start.

torchrun starts a run again through the same store, in which the addresses of processes that are gone still
stand: who reads one of these before it is overwritten waits for a dead process. So the leading process draws
a name for this start, under which nobody has written anything yet, and hands it to each of the others, which
asks for it under a name of its own.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

_SECONDS = 300.0  # for all to come: machines of a job do not start at the same moment
_POLL_SECONDS = 0.01


def meet(rank: int, size: int) -> dist.Store:
    """A store that the processes of this start have to themselves. Raises ``TimeoutError`` where some do not come."""
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timedelta(seconds=_SECONDS)))
    name = _welcome_all(store, size) if rank == 0 else _ask(store, rank)
    return dist.PrefixStore(name, store)


def _welcome_all(store: dist.Store, size: int) -> str:
    """Answer whoever asks, also processes that are gone, until each rank has heard the name."""
    name = f"isonet/{uuid.uuid4()}"
    waiting, answered, end = set(range(1, size)), set(), time.monotonic() + _SECONDS
    while waiting:
        for rank in sorted(waiting):
            if store.check([_heard(name, rank)]):
                waiting.remove(rank)
            elif store.check([_asking(rank)]) and (token := store.get(_asking(rank)).decode()) not in answered:
                store.set(_answer(token), name)
                answered.add(token)
        if time.monotonic() > end:
            raise TimeoutError(f"process {min(waiting)} has not come in {_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
    return name


def _ask(store: dist.Store, rank: int) -> str:
    token = str(uuid.uuid4())
    store.set(_asking(rank), token)
    wait_for(store, _answer(token), _SECONDS)
    name = store.get(_answer(token)).decode()
    store.set(_heard(name, rank), "yes")
    return name


def wait_for(store: dist.Store, key: str, seconds: float) -> None:
    """Return when ``key`` is written; ``TimeoutError`` after ``seconds``. The store's own wait would log it."""
    end = time.monotonic() + seconds
    while not store.check([key]):
        if time.monotonic() > end:
            raise TimeoutError(f"the first process has not answered in {seconds:.0f} s")
        time.sleep(_POLL_SECONDS)


def _asking(rank: int) -> str:
    return f"isonet/asking/{rank}"


def _answer(token: str) -> str:
    return f"isonet/answer/{token}"


def _heard(name: str, rank: int) -> str:
    return f"{name}/heard/{rank}"
