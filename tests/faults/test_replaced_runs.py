"""The folder of a run if another run replaces it, or if it contains files that the run did not write."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import zipfile
from pathlib import Path

import pytest

from conftest import REPO, TINY, assert_same
from isonet import load_cfg
from isonet.errors import CheckpointError, NonFiniteError, Stopped, StorageError
from isonet.files.checkpoint import read_checkpoint
from isonet.files.run_folder import AUTO, LATEST, RunFolder, checkpoints_to_resume
from isonet.files.storage import FolderLock, append_line, link_file, remove_leftovers, replace_link, write_file
from isonet.signals import STOP_SIGNALS, StopSignals
from isonet.training import TrainStep
from isonet.training.run import run_training
from launch import start
from victim import die_at

pytestmark = pytest.mark.usefixtures("no_pictures")

DIVERGES = ["SOLVER.BASE_LR", 1e6]
OWN_LOG = "log-before-restart.txt"


def cfg(tmp_path, *opts):
    return load_cfg(None, [*TINY, "OUTPUT_DIR", str(tmp_path), *opts])


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.name != OWN_LOG}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of three epochs with a checkpoint of each."""
    return run_training(cfg(tmp_path_factory.mktemp("runs"), "SOLVER.MAX_EPOCHS", 3, "RUNTIME.KEEP", 3), "run")


@pytest.fixture
def folder(whole, tmp_path):
    """The run after two epochs, with a file of the user in its folder."""
    path = tmp_path / "digits/run"
    shutil.copytree(whole.path, path)
    (path / "epoch0003.pt").unlink()
    folder = RunFolder(path)
    link_file(path / "epoch0002.pt", folder.latest)
    (path / "notes.txt").write_text("mine")
    return folder


# Replacing a run


@pytest.mark.parametrize("start_from", ["", "latest.pt", ".", "run", "link"])
def test_a_start_that_saves_nothing_leaves_the_former_run_as_it_was(folder, tmp_path, tally, start_from):
    before = contents(folder.path)
    (tmp_path / "link").symlink_to(folder.best)
    where = {"": "", "run": "run", "link": str(tmp_path / "link")}.get(start_from, str(folder.path / start_from))
    with pytest.raises(NonFiniteError, match="nothing was saved"):
        run_training(cfg(tmp_path, *DIVERGES, "MODEL.INIT_FROM", where), "run", overwrite=True)
    assert contents(folder.path) == before
    assert "NonFiniteError" in (folder.path / OWN_LOG).read_text()
    tally("survived")


def test_a_run_can_start_from_the_run_that_it_replaces(folder, tmp_path, tally):
    """With a learning rate of 0, the weights remain the loaded weights."""
    best = read_checkpoint(folder.best)["model"]
    opts = ["SOLVER.BASE_LR", 0.0, "MODEL.INIT_FROM", str(folder.path)]
    assert run_training(cfg(tmp_path, *opts), "run", overwrite=True).path == folder.path
    assert_same(read_checkpoint(folder.latest)["model"], best)
    assert len(folder.metrics.read_text().splitlines()) == 1
    assert (folder.path / "notes.txt").read_text() == "mine"
    assert not list(folder.path.glob(".*"))
    assert [file.name for file in folder.numbered()] == ["epoch0001.pt"]
    tally("survived")


def test_auto_keeps_the_metrics_of_a_run_without_checkpoints_until_it_saves(folder, tmp_path, tally):
    for file in folder.path.glob("*.pt"):
        file.unlink()
    before = contents(folder.path)
    with pytest.raises(NonFiniteError):
        run_training(cfg(tmp_path, *DIVERGES), "run", resume=AUTO)
    assert contents(folder.path) == before
    tally("survived")


class Killed(BaseException):
    pass


def test_a_kill_at_any_moment_of_a_replacement_loses_neither_run(folder, monkeypatch, tally):
    """All calls to the file system after a given call fail, as if the process had been killed there."""
    real = {(place, name): getattr(place, name) for place, name in [
        (Path, "replace"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (Path, "rmdir"), (os, "replace"),
        (os, "link"),
    ]}  # fmt: skip
    left = 0

    def counted(*args, call, **kwargs):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return call(*args, **kwargs)

    def lives(calls, function) -> bool:
        nonlocal left
        left = calls
        with monkeypatch.context() as patch:
            for (place, name), call in real.items():
                patch.setattr(place, name, functools.partialmethod(_call, call) if place is Path else _bound(call))
            try:
                function()
            except Killed:
                return False
        return True

    def _call(self, call, *args, **kwargs):
        return counted(self, *args, call=call, **kwargs)

    def _bound(call):
        return functools.partial(counted, call=call)

    def replace():
        folder.set_former_aside()
        write_file(folder.config, "new")
        append_line(folder.log, "new")
        folder.save(b"new", 1, 0, keep=2, best=True)

    before, saved, restored, calls = contents(folder.path), 0, 0, 0
    whole_folder = folder.path.with_name("copy")
    shutil.copytree(folder.path, whole_folder)
    while True:
        done = lives(calls, replace)
        again = 0
        while not lives(again, folder.restore_former):  # the next start is killed, too, one call later each time
            again += 1
        remove_leftovers(folder.path)
        found = contents(folder.path)
        if found.get("epoch0001.pt") == b"new":  # a run resumes from this file even if latest.pt is missing
            saved += 1
            assert {found.pop(name, b"new").rstrip() for name in ("best.pt", "latest.pt")} == {b"new"}
            assert found.pop("notes.txt") == b"mine"
            assert found == {"config.yaml": b"new", "epoch0001.pt": b"new", "log.txt": b"new\n"}
        else:
            restored += 1
            assert found == before
        if done:
            break
        calls += 1
        shutil.rmtree(folder.path)
        shutil.copytree(whole_folder, folder.path)
    assert restored > 10
    assert saved > 5
    tally("survived", restored + saved)


def test_after_a_kill_before_the_first_save_the_former_run_is_back(folder, tmp_path, tally):
    before, best = contents(folder.path), str(folder.best)
    train = [
        "train.py",
        "--cfg",
        REPO / "configs/digits_ISO20.yaml",
        "--output",
        "run",
        *TINY[4:],
        "OUTPUT_DIR",
        tmp_path,
    ]
    replace = [*train, "MODEL.INIT_FROM", best, "--overwrite"]
    killed = start(*replace, cwd=tmp_path, first=functools.partial(die_at, "step", 1)).wait()
    assert killed.returncode == -signal.SIGKILL, killed.output
    assert not folder.latest.exists()
    refused = start(*train, "--resume", cwd=tmp_path).wait()
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    assert contents(folder.path) == before
    with pytest.raises(Stopped):  # the command that was killed is repeated and starts from the same file
        run_stopped_at(3, signal.SIGTERM, cfg(tmp_path, "MODEL.INIT_FROM", best), overwrite=True)
    assert read_checkpoint(folder.latest)["part"]["sums"]["steps"] == 3
    tally("survived")
    tally("refused")


# Files that the run did not write


def test_a_checkpoint_counts_for_the_epoch_that_it_contains(folder, whole, tmp_path, tally):
    """RUNTIME.KEEP neither counts nor removes checkpoints that the user has copied."""
    first = (folder.path / "epoch0001.pt").read_bytes()
    names = ["epoch0000.pt", "epoch0001-step000003.pt", "epoch0003.pt", "epoch0099.pt", "epoch7.pt", "epoch00007.pt"]
    for name in names:
        (folder.path / name).write_bytes(first)
    assert [file.name for file in folder.numbered()] == ["epoch0001.pt", "epoch0002.pt"]
    assert checkpoints_to_resume(folder, str(folder.path / "epoch0002.pt"), overwrite=False)
    with pytest.raises(CheckpointError, match="is not its latest checkpoint"):
        checkpoints_to_resume(folder, str(folder.path / "epoch0099.pt"), overwrite=False)
    (folder.path / "epoch0003.pt.other").write_bytes(b"mine")
    run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 3, "RUNTIME.KEEP", 1), "run", resume=LATEST)
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
    assert_same(read_checkpoint(folder.latest)["model"], read_checkpoint(whole.latest)["model"])
    assert [file.name for file in folder.numbered()] == ["epoch0003.pt"]
    assert (folder.path / "epoch0003.pt.other").read_bytes() == b"mine"
    names[2] = "epoch0003.pt.other1"
    assert all((folder.path / name).read_bytes() == first for name in names)
    assert "epoch0099.pt was saved at another epoch" in folder.log.read_text()
    tally("survived", len(names))


def test_a_file_that_cannot_be_read_counts_for_its_name(folder, tmp_path):
    with zipfile.ZipFile(folder.path / "epoch0008.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N.")
    (folder.path / "epoch0009.pt").write_bytes(b"damaged")
    assert [file.name for file in folder.numbered()][2:] == ["epoch0008.pt", "epoch0009.pt"]


def test_names_that_a_run_does_not_give_are_files_of_the_user(folder):
    """Epochs have at least four digits and steps at least six. Longer numbers have no leading zeros."""
    ours = ["epoch0001.pt", "epoch0002-step000003.pt", "epoch12345.pt", "epoch12345-step1234567.pt"]
    others = ["epoch00001.pt", "epoch0002-step0000003.pt", "epoch1.pt", "epoch0001-copy.pt"]
    for name in ours + others:
        (folder.path / name).write_bytes(b"any")
    found = [file.name for file in folder.numbered()]
    assert set(ours) <= {*found}
    assert not set(others) & {*found}


def test_nothing_is_written_through_a_link(folder, tmp_path, tally):
    names = ["lock.txt", "log.txt", "metrics.jsonl", "timing.jsonl", "config.yaml", "versions.json", "epoch0003.pt"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in names:
        own = (folder.path / name).read_bytes() if (folder.path / name).exists() else b"mine"
        (elsewhere / name).write_bytes(own)
        (folder.path / name).unlink(missing_ok=True)
        (folder.path / name).symlink_to(elsewhere / name)
    before = contents(elsewhere)
    run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 3), "run", resume=LATEST)
    assert contents(elsewhere) == before
    assert read_checkpoint(folder.latest)["epoch"] == 3
    assert folder.log.read_bytes().startswith(before["log.txt"])
    assert [file.name for file in folder.path.iterdir() if file.is_symlink()] == ["epoch0003.pt.damaged"]
    (folder.path / "lock").symlink_to(elsewhere / "log.txt")
    with pytest.raises(StorageError, match="lock is a link"):
        run_training(cfg(tmp_path), "run", resume=LATEST)
    assert contents(elsewhere) == before
    tally("survived", len(names))
    tally("refused")


def test_a_link_to_nothing_counts_as_a_file_of_the_run(tmp_path, tally):
    folder = RunFolder(tmp_path / "digits/run")
    folder.path.mkdir(parents=True)
    folder.metrics.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="already holds a run"):
        run_training(cfg(tmp_path), "run")
    assert not (tmp_path / "elsewhere").exists()
    tally("refused")


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


OBJECTS = {
    "named pipe": os.mkfifo,
    "socket": bind,
    "folder": os.mkdir,
    "device": lambda path: os.symlink("/dev/null", path),
    "device of a stream": lambda path: os.symlink("/proc/self/fd/1", path),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_pipe_a_socket_a_folder_or_a_device_is_refused_and_not_opened(tmp_path, monkeypatch, tally, kind):
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    path, source = Path("log.txt"), Path("source")
    source.touch()
    OBJECTS[kind](path)
    for write in (
        lambda: write_file(path, "x"), lambda: append_line(path, "x"), lambda: link_file(source, path),
        lambda: replace_link(path), lambda: checkpoints_to_resume(RunFolder(Path()), LATEST, overwrite=False),
    ):  # fmt: skip
        with pytest.raises(StorageError, match=r"log\.txt is .*, not a file"):
            write()
    for name in ("lock", "lock.txt"):
        path.rename(name)
        path = Path(name)
        with pytest.raises(StorageError, match=f"{name} is .*, not a file"):
            FolderLock(tmp_path).acquire()
    path.rename("epoch0004.pt")
    with pytest.raises(StorageError, match=r"epoch0004\.pt is .*, not a file"):
        RunFolder(tmp_path).check()
    assert sorted(os.listdir(tmp_path)) == ["epoch0004.pt", "source"]
    tally("refused", 8)


# Signals


@pytest.fixture
def handlers():
    """Restore the handlers of signals after the test."""
    former = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.usefixtures("handlers")
def test_every_stop_signal_is_recorded(number, capfd):
    signal.signal(number, signal.SIG_DFL)  # a shell ignores SIGINT for background commands
    with StopSignals() as stop:
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert number.name in capfd.readouterr().err
    if number == signal.SIGXCPU:
        os.kill(os.getpid(), number)  # the kernel repeats SIGXCPU every second until the process ends


def run_stopped_at(step: int, number: int, *args, **kwargs) -> None:
    """Train, and send this process a signal during ``step``."""
    count = 0

    def send(self, *step_args, real=TrainStep.__call__, **step_kwargs):
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), number)
        return real(self, *step_args, **step_kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", send)
        run_training(args[0], "run", **kwargs)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("name", ["SIGUSR2", "SIGXCPU"])
def test_the_signals_of_schedulers_save_and_stop(whole, tmp_path, tally, name):
    config = cfg(tmp_path)
    with pytest.raises(Stopped, match=f"by {name} in epoch 1 after step"):
        run_stopped_at(3, getattr(signal, name), config)
    folder = run_training(config, "run", resume=LATEST)
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes().splitlines(keepends=True)[0]
    tally("survived")
