"""The rendezvous of the ranks of a run, and the comparison of their software before they connect."""

import json
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist

from isonet.agreement import SAME_MACHINES, raise_reported, report, software_facts
from isonet.errors import RankError, UserError
from isonet.launch import Launch, is_main, launch

SECONDS = 300.0  # the machines of a job do not start at the same moment
_POLL_SECONDS = 0.01
_LAST_READ_SECONDS = 5.0  # rank 0 may own the store, so it waits until the other ranks have read the reports
_REQUEST, _RESPONSE = "isonet/request/{}", "isonet/response/{}"  # keys in the store, with the rank and its token


def rendezvous(process: Launch, device: str = "", error: Exception | None = None) -> dist.Store:
    """Compare software and kind of device on all ranks, and return a store that only the ranks of this start share.

    error: the error that prevents this rank from taking part. Raises ``TimeoutError`` if a rank does not connect.
    Raises an error on every rank (see ``raise_reported``) if one rank has an ``error``, other software or another kind
    of device.

    torchrun restarts the ranks with the store of the previous start, which still contains the addresses of dead ranks.
    A rank that reads such an address waits for a dead process, and torch has no prefix for each start. Therefore rank 0
    draws a random prefix. Each rank requests the prefix with a random token, and rank 0 writes the prefix under this
    token. Each rank confirms the prefix with its report, and rank 0 writes the reports of all ranks to the store.
    """
    rank, size, where = process.rank, process.size, process.where
    facts = {**software_facts(), "the version of torch": str(torch.__version__)}
    if error is None:
        facts["the kind of device"] = device
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timedelta(seconds=SECONDS)))
    if rank == 0:
        prefix = f"isonet/{uuid.uuid4()}"
        store.set(f"{prefix}/facts", json.dumps([facts, where]))
        reports = [report(error, facts, where, facts, where, ""), *_send_prefix(store, size, prefix)]
        store.set(f"{prefix}/reports", json.dumps(reports))
        if any(reports):
            for other in range(1, size):
                read_store(store, f"{prefix}/read/{other}", _LAST_READ_SECONDS)
    else:
        prefix = _request_prefix(store, rank)
        reference, where_0 = json.loads(_from_rank_0(store, f"{prefix}/facts"))
        store.set(f"{prefix}/report/{rank}", report(error, facts, where, reference, where_0, SAME_MACHINES))
        reports = json.loads(_from_rank_0(store, f"{prefix}/reports"))
        store.set(f"{prefix}/read/{rank}", "yes")
    raise_reported(reports, process, error)
    return dist.PrefixStore(prefix, store)


def reported(mistake: str) -> str:
    """Report a mistake in the command of this rank to the other ranks, and return the line that this rank prints.

    The line is "" if only rank 0 prints it.
    """
    try:
        process = launch()
        if process:
            rendezvous(process, error=UserError(mistake))
    except RankError as error:
        return str(error) if is_main() or error.printed_here else ""
    except (UserError, RuntimeError, ValueError, TimeoutError):
        return mistake
    return mistake


def _send_prefix(store: dist.Store, size: int, prefix: str) -> list[str]:
    """Send the prefix to every rank that requests it, and return the reports of ranks 1, 2, ...

    Dead ranks of an earlier start may have left requests, which are answered, too.
    """
    reports: dict[int, str] = {}
    answered, end = set(), time.monotonic() + SECONDS
    while waiting := [rank for rank in range(1, size) if rank not in reports]:
        for rank in waiting:
            request, confirmed = _REQUEST.format(rank), f"{prefix}/report/{rank}"
            if store.check([confirmed]):
                reports[rank] = store.get(confirmed).decode()
            elif store.check([request]) and (token := store.get(request).decode()) not in answered:
                store.set(_RESPONSE.format(token), prefix)
                answered.add(token)
        if time.monotonic() > end:
            raise TimeoutError(f"rank {waiting[0]} has not connected within {SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
    return [reports[rank] for rank in range(1, size)]


def _request_prefix(store: dist.Store, rank: int) -> str:
    token = str(uuid.uuid4())
    store.set(_REQUEST.format(rank), token)
    return _from_rank_0(store, _RESPONSE.format(token))


def _from_rank_0(store: dist.Store, key: str) -> str:
    text = read_store(store, key, SECONDS)
    if text is None:
        raise TimeoutError(f"rank 0 has not answered within {SECONDS:.0f} s")
    return text


def read_store(store: dist.Store, key: str, seconds: float) -> str | None:
    """Return the text under ``key`` once it is written, or None after ``seconds``. torch's own wait logs a timeout."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if store.check([key]):
            return store.get(key).decode()
        time.sleep(_POLL_SECONDS)
    return None
