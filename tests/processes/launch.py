"""Several processes for a test: forked from it, which takes no time, or started by torchrun as a user does."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from conftest import REPO


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# From a process that has computed nothing: after a backward pass torch cannot be forked
_CLEAN = multiprocessing.get_context("forkserver")
_CLEAN.set_forkserver_preload(["isonet.training.run", "pytest"])


def forked(processes: int, function: Callable[..., Any], tmp_path: Path, *args: Any) -> list[Any]:
    """What ``function(rank, *args)`` gives in each of the processes, which find the environment that torchrun makes."""
    port, folder = free_port(), tmp_path / f"forked{processes}-{os.urandom(4).hex()}"
    folder.mkdir(parents=True)
    children = [
        _CLEAN.Process(target=_run, args=(rank, processes, port, folder, function, args)) for rank in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    found = [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(processes)]
    assert all(ok for ok, _ in found), "\n".join(text for ok, text in found if not ok)
    return [result for _, result in found]


def _run(rank: int, processes: int, port: int, folder: Path, function: Callable[..., Any], args: tuple) -> None:
    try:
        torch.set_num_threads(1)
        os.environ.update(environment(rank, processes, port))
        result = True, function(rank, *args)
    except BaseException:
        result = False, traceback.format_exc()
    (folder / str(rank)).write_bytes(pickle.dumps(result))


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    names = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
    return {**{name: str(value) for name, value in names.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def torchrun(*args: object, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """Start a script of the project under torchrun: its options, the script, the script's arguments."""
    script = next(i for i, arg in enumerate(args) if str(arg).endswith(".py"))
    options = [str(arg) for arg in args[:script]]
    command = [
        sys.executable, "-m", "torch.distributed.run", *(options or ["--standalone"]), str(REPO / str(args[script])),
        *map(str, args[script + 1 :]),
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
