"""Several processes for a test: forked from it, which takes no time, or started by torchrun as a user does."""

from __future__ import annotations

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


def forked(processes: int, function: Callable[..., Any], tmp_path: Path, *args: Any) -> list[Any]:
    """What ``function(rank, *args)`` gives in each of the processes, which find the environment that torchrun makes."""
    port, folder = free_port(), tmp_path / f"forked{processes}-{os.urandom(4).hex()}"
    folder.mkdir(parents=True)
    children = [_fork(rank, processes, port, folder, function, args) for rank in range(processes)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    found = [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(processes)]
    failures = [text for ok, text in found if not ok]
    assert codes == [0] * processes, "\n".join(failures)
    return [result for _, result in found]


def _fork(rank: int, processes: int, port: int, folder: Path, function: Callable[..., Any], args: tuple) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        torch.set_num_threads(1)  # the threads of the parent are not here
        os.environ.update(environment(rank, processes, port))
        result = True, function(rank, *args)
        code = 0
    except BaseException:
        result = False, traceback.format_exc()
    finally:
        (folder / str(rank)).write_bytes(pickle.dumps(result))
        os._exit(code)


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
