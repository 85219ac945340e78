"""Processes for tests: forked from a server that has imported the project, or started by a new interpreter.

A new interpreter takes seconds to import torch. The server imports it once. The server computes nothing, because a
process that has run a backward pass cannot be forked safely.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).parent.parent
SECONDS = 300.0  # after this time a process counts as hung

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([
    "pytest", "torchvision.transforms", "PIL.PngImagePlugin", "PIL.JpegImagePlugin", "matplotlib.backends.backend_agg",
    "matplotlib.figure", "torch.distributed.elastic.agent.server.api", "isonet.training.run", "isonet.tools.trained",
])  # fmt: skip
_running: set[Script] = set()
_numbers = itertools.count()


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return the folder that contains the scripts' output until this process ends."""
    return tempfile.TemporaryDirectory(prefix="isonet-tests-")


class Script:
    """A script or module of the project, in a forked process, with the interface of ``subprocess.Popen``.

    The process has its own standard streams, folder, environment and process group, and the signal handlers of a new
    interpreter. ``stdout`` and ``stderr`` are the text printed so far. first: a function that the process calls before
    the script. out: a file or a named pipe for the standard output.
    """

    def __init__(
        self, name: str, args: tuple[object, ...], cwd: Path, env: dict[str, str],
        first: Callable[[], object] | None, out: Path | None,
    ) -> None:  # fmt: skip
        number = next(_numbers)
        self._out = out or Path(_folder().name) / f"{number}.out"
        self._err = Path(_folder().name) / f"{number}.err"
        env = {**os.environ, "PYTHONPATH": str(REPO), **env}
        streams = str(self._out), str(self._err)
        run = functools.partial(_run_script, name, [str(arg) for arg in args], str(cwd), env, streams, first)
        self._process = _SERVER.Process(target=_child, args=(hidden_modules(), run))
        self._process.start()
        _running.add(self)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while the process runs. Minus the number of the signal if a signal killed it."""
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        return _text(self._out)

    @property
    def stderr(self) -> str:
        return _text(self._err)

    @property
    def output(self) -> str:
        """The standard output, followed by the standard error."""
        return self.stdout + self.stderr

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = SECONDS) -> Script:
        """Wait until the process ends."""
        self._process.join(seconds)
        if self.returncode is None:
            self.kill()
            raise AssertionError(f"the process did not end within {seconds:.0f} s: {self.output}")
        _running.discard(self)
        return self

    def kill(self) -> None:
        """Kill the process and its process group, if it still runs."""
        if self.returncode is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # the process group does not exist yet
                self._process.kill()
            self._process.join()
        _running.discard(self)


def start(
    name: str, *args: object, cwd: Path, first: Callable[[], object] | None = None, out: Path | None = None, **env: str
) -> Script:
    """Start a script such as ``train.py``, or a module such as ``isonet.tools.sweep``, from ``cwd``."""
    return Script(name, args, cwd, env, first, out)


def run_script(name: str, *args: object, cwd: Path, out: Path | None = None, **env: str) -> Script:
    """Run a script of the project from ``cwd`` as a user does, but without starting a new interpreter."""
    return start(name, *args, cwd=cwd, out=out, **env).wait()


def run_new_interpreter(name: str, *args: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the project in a new interpreter, for tests of its imports or its exit."""
    command = [sys.executable, str(REPO / name), *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(REPO), **env}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)


def torchrun(*args: object, cwd: Path, **env: str) -> Script:
    """Start a script of the project under torchrun. args: torchrun's options, the script, its arguments.

    Torchrun itself is forked. Its workers are new interpreters.
    """
    at = next(i for i, arg in enumerate(args) if str(arg).endswith(".py"))
    options = args[:at] or ("--standalone",)
    return start("torch.distributed.run", *options, REPO / str(args[at]), *args[at + 1 :], cwd=cwd, **env)


def wait_until(condition: Callable[[], object], process: Script | subprocess.Popen, seconds: float = SECONDS) -> None:
    """Return as soon as ``condition`` holds. Fail if the process ends before that."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None and not condition():
            raise AssertionError(f"the process ended early, with {process.poll()}: {getattr(process, 'output', '')}")
        assert time.monotonic() < end, f"timed out after {seconds:.0f} s: {getattr(process, 'output', '')}"
        time.sleep(0.002)


def end_all() -> None:
    """Kill the scripts that still run, for example after a failed test."""
    for script in list(_running):
        script.kill()


def hidden_modules() -> list[str]:
    """Return the names of modules that this process cannot import, although they are installed."""
    return [name for name, module in sys.modules.items() if module is None]


def _child(hidden: list[str], run: Callable[[], None]) -> None:
    """Call ``run`` in a forked process that hides the same modules as the test."""
    sys.modules.update(dict.fromkeys(hidden))
    run()


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _run_script(
    name: str, args: list[str], cwd: str, env: dict[str, str], streams: tuple[str, str], first: Callable | None
) -> None:
    """Give this process the state of a new interpreter, and run the script."""
    os.setsid()
    for handle, path in enumerate(streams, start=1):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(file, handle)
        os.close(file)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # the platform's default
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, str(REPO))
    sys.argv = [str(REPO / name), *args]
    if first:
        first()
    try:
        if name.endswith(".py"):
            runpy.run_path(str(REPO / name), run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # end as an interpreter does
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        _flush()


def _flush() -> None:
    """Exit with 120 if the output cannot be written, as an interpreter does."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(120)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def forked(processes: int, function: Callable[..., Any], tmp_path: Path, *args: Any) -> list[Any]:
    """Return ``function(rank, *args)`` for each rank, with the environment variables that torchrun sets."""
    port, folder = free_port(), tmp_path / f"forked{processes}-{os.urandom(4).hex()}"
    folder.mkdir(parents=True)
    children = [
        _SERVER.Process(
            target=_child,
            args=(hidden_modules(), functools.partial(_run, rank, processes, port, folder, function, args)),
        )
        for rank in range(processes)
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
        os.environ.update(environment(rank, processes, port))
        result = True, function(rank, *args)
    except BaseException:
        result = False, traceback.format_exc()
    (folder / str(rank)).write_bytes(pickle.dumps(result))


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    names = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
    return {**{name: str(value) for name, value in names.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
