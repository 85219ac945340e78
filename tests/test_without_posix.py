"""Training, evaluation and the tools without the modules, calls and signals that Python lacks on Windows.

No Windows machine runs the tests. The tests remove everything that Python lacks there, and import ``isonet`` again. The
standard library and torch remain unchanged, and filelock uses its lock for systems without ``fcntl``.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import pkgutil
import signal
import sys

import filelock
import pytest

from conftest import REPO, TINY
from isonet import load_cfg
from isonet.training.run import run_training
from launch import start

MODULES = ["fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"]
CALLS = [
    "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "fork", "forkpty", "getloadavg", "getpgid", "getuid", "killpg",
    "mkfifo", "mknod", "nice", "pread", "preadv", "pwrite", "register_at_fork", "sched_getaffinity", "sendfile",
    "setpgid", "setsid", "statvfs", "sysconf", "uname",
]  # fmt: skip
# Windows has no SIGKILL, either, but ``subprocess`` on this system needs it
SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN", "SIGKILL"}
SIGNAL_CALLS = [
    "ITIMER_REAL", "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigtimedwait", "sigwait",
    "sigwaitinfo",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("no_pictures")


def as_on_windows(every_module: bool = False) -> None:
    """Remove everything that Python lacks on Windows, and import the package again.

    every_module: whether to import all modules now, and not on demand.
    """
    sys.modules.update(dict.fromkeys(MODULES))
    for name in CALLS:
        vars(os).pop(name, None)
    for name in [name for name in vars(signal) if name.startswith("SIG") and name not in SIGNALS] + SIGNAL_CALLS:
        vars(signal).pop(name, None)
    filelock.FileLock = filelock.SoftFileLock
    for name in [name for name in sys.modules if name.partition(".")[0] == "isonet"]:
        del sys.modules[name]
    import isonet

    for module in pkgutil.walk_packages(isonet.__path__, "isonet.") if every_module else ():
        importlib.import_module(module.name)


def test_a_run_can_be_trained_and_evaluated_and_the_rest_says_what_it_needs(tmp_path):
    config = REPO / "configs/digits_ISO20.yaml"
    command = ["train.py", "--cfg", config, "--output", "run", *TINY[4:]]
    ranks = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "::1", "MASTER_PORT": 1}
    env = {name: str(value) for name, value in ranks.items()}
    lacks_all = functools.partial(as_on_windows, every_module=True)
    refused = {
        "several ranks": start(*command, cwd=tmp_path, first=as_on_windows, **env),
        "os.preadv": start("isonet.tools.shards", "verify", tmp_path, cwd=tmp_path, first=lacks_all),
    }
    train = start(*command, "OUTPUT_DIR", tmp_path / "there", cwd=tmp_path, first=as_on_windows)
    here = run_training(load_cfg(config, [*TINY[4:], "OUTPUT_DIR", str(tmp_path / "here")]), "run")
    assert train.wait().returncode == 0, train.output
    there = tmp_path / "there/digits/run"
    assert (there / "metrics.jsonl").read_bytes() == here.metrics.read_bytes()
    test = start("test.py", "--ckpt", there, "--json", tmp_path / "top1.json", cwd=tmp_path, first=as_on_windows).wait()
    assert test.returncode == 0, test.output
    assert json.loads((tmp_path / "top1.json").read_text())["top1"] == json.loads(here.metrics.read_text())["top1"]
    for word, script in refused.items():
        assert script.wait().returncode == 2, script.output
        (error,) = [line for line in script.stderr.splitlines() if line.startswith("error: ")]
        assert word in error
        assert "Windows" in error
