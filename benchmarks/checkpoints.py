"""Time and memory of writing and reading a checkpoint of R-ISONet-101, against torch.save and torch.load.

The checkpoint has the entries of a run, with the momentum of every parameter. Both files are on the same disk, and both
writes end with fsync. Each write and each read is the first of its process, as in a run that is resumed, and reads find
the file in the page cache.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Row
from benchmarks.growth import CONFIGS
from benchmarks.memory import in_new_process, measure
from isonet import build_model, load_cfg
from isonet.classes import wordnet_ids
from isonet.files.checkpoint import read_checkpoint, save_checkpoint
from isonet.training import build_optimizer


def checkpoint_rows(repeats: int, place: Path, config: str = "IN1k-RISO101") -> list[Row]:
    rows = []
    for way, actions in (("written", ("torch.save", "ours written")), ("read", ("torch.load", "ours read"))):
        runs = [[in_new_process(_run, action, place, config) for action in actions] for _ in range(repeats)]
        (before, now), (memory, our_memory) = (
            [statistics.median(run[number][figure] for run in runs) for number in range(2)] for figure in range(2)
        )
        work, disk = f"checkpoint of {config} {way}", ", with fsync" if way == "written" else ""
        size = (place / "ours.pt").stat().st_size / 1e6
        note = f"{size:.0f} MB{disk}; {now / before:.2f} times as long as {actions[0]}"
        rows.append(Row(work, 1e3 * before, 1e3 * now, before / now, None, "ms", note))
        rows.append(Row(f"{work}: memory", memory, our_memory, None, None, "MiB", "at the peak, beside the state"))
    return rows


def _run(action: str, place: Path, config: str) -> tuple[float, float]:
    """Return seconds and peak memory in MiB of an action, after the same action with a small file."""
    state = _state(config) if action in ("torch.save", "ours written") else {}
    small, small_place = {"model": {"w": torch.zeros(1)}}, place / f"small-{os.getpid()}"
    small_place.mkdir()
    for each in ("torch.save", "ours written", action):
        _action(each, small, small_place)()
    return measure(_action(action, state, place))


def _action(action: str, state: dict[str, Any], place: Path) -> Callable[[], object]:
    theirs, ours = place / "torch.pt", place / "ours.pt"
    actions: dict[str, Callable[[], object]] = {
        "torch.save": lambda: _synced(state, theirs),
        "torch.load": lambda: torch.load(theirs, weights_only=True),
        "ours written": lambda: save_checkpoint(ours, state),
        "ours read": lambda: read_checkpoint(ours),
    }
    return actions[action]


def _synced(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _state(config: str) -> dict[str, Any]:
    """Return the state that a run of ``config`` saves after an epoch."""
    cfg = load_cfg(CONFIGS / f"{config}.yaml")
    model = build_model(cfg)
    optimizer = build_optimizer(model, cfg)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # creates the momentum
    optimizer.zero_grad()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1, "best_top1": 50.0,
            "best_epoch": 1, "history": [], "config": cfg.dump(), "classes": [*wordnet_ids()]}  # fmt: skip
