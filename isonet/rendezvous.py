"""How the ranks of a run find each other, and what they compare before they connect."""

import json
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist

from isonet.agreement import SAME_MACHINES, report, settle, software_facts
from isonet.errors import RankError, UserError
from isonet.launch import Launch, is_main, launch

SECONDS = 300.0  # the machines of a job do not start at the same moment
_POLL_SECONDS = 0.01
_LAST_READ_SECONDS = 5.0  # rank 0 may own the store: before it ends, the other ranks read why
_QUESTION, _ANSWER = "isonet/question/{}", "isonet/answer/{}"  # keys in the store: by rank, and by the rank's token


def rendezvous(process: Launch, device: str = "", error: Exception | None = None) -> dist.Store:
    """Return a store that only the ranks of this start share, after they have compared software and kind of device.

    error: the reason why this rank cannot take part. Raises ``TimeoutError`` if a rank does not connect. Raises an
    error on every rank (see ``settle``) if one of them has an ``error``, other software or another kind of device.

    torchrun restarts the ranks with the store of the previous start, which still contains the addresses of dead ranks.
    A rank that reads such an address waits for a dead process, and torch has no prefix for each start. Therefore rank 0
    draws a prefix and sends it to each rank that asks, under a key that the asking rank has drawn. Each rank confirms
    it with its report, and rank 0 writes the reports for all of them.
    """
    rank, size, where = process.rank, process.size, process.where
    facts = {**software_facts(), "the version of torch": str(torch.__version__)}
    if error is None:
        facts["the kind of device"] = device
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timedelta(seconds=SECONDS)))
    if rank == 0:
        prefix = f"isonet/{uuid.uuid4()}"
        store.set(f"{prefix}/facts", json.dumps([facts, where]))
        reports = [report(error, facts, where, facts, where, ""), *_hand_out_prefix(store, size, prefix)]
        store.set(f"{prefix}/reports", json.dumps(reports))
        if any(reports):
            for other in range(1, size):
                read_store(store, f"{prefix}/read/{other}", _LAST_READ_SECONDS)
    else:
        prefix = _ask_for_prefix(store, rank)
        reference, where_0 = json.loads(_from_rank_0(store, f"{prefix}/facts"))
        store.set(f"{prefix}/report/{rank}", report(error, facts, where, reference, where_0, SAME_MACHINES))
        reports = json.loads(_from_rank_0(store, f"{prefix}/reports"))
        store.set(f"{prefix}/read/{rank}", "yes")
    settle(reports, process, error)
    return dist.PrefixStore(prefix, store)


def reported(mistake: str) -> str:
    """Report a mistake in the command of this rank to the other ranks, and return the line that this rank prints.

    The line is "" on a rank that leaves it to rank 0.
    """
    try:
        process = launch()
        if process:
            rendezvous(process, error=UserError(mistake))
    except RankError as error:
        return str(error) if is_main() or error.aloud else ""
    except (UserError, RuntimeError, ValueError, TimeoutError):
        return mistake
    return mistake


def _hand_out_prefix(store: dist.Store, size: int, prefix: str) -> list[str]:
    """Answer every rank that asks, including dead ranks of an earlier start, and return the reports of ranks 1, ..."""
    reports: dict[int, str] = {}
    answered, end = set(), time.monotonic() + SECONDS
    while waiting := [rank for rank in range(1, size) if rank not in reports]:
        for rank in waiting:
            question, confirmed = _QUESTION.format(rank), f"{prefix}/report/{rank}"
            if store.check([confirmed]):
                reports[rank] = store.get(confirmed).decode()
            elif store.check([question]) and (token := store.get(question).decode()) not in answered:
                store.set(_ANSWER.format(token), prefix)
                answered.add(token)
        if time.monotonic() > end:
            raise TimeoutError(f"rank {waiting[0]} has not connected within {SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
    return [reports[rank] for rank in range(1, size)]


def _ask_for_prefix(store: dist.Store, rank: int) -> str:
    token = str(uuid.uuid4())
    store.set(_QUESTION.format(rank), token)
    return _from_rank_0(store, _ANSWER.format(token))


def _from_rank_0(store: dist.Store, key: str) -> str:
    text = read_store(store, key, SECONDS)
    if text is None:
        raise TimeoutError(f"rank 0 has not answered within {SECONDS:.0f} s")
    return text


def read_store(store: dist.Store, key: str, seconds: float) -> str | None:
    """Return the text under ``key`` once it is written, or None after ``seconds``. torch's own wait would log that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if store.check([key]):
            return store.get(key).decode()
        time.sleep(_POLL_SECONDS)
    return None
