"""Full, read-only and missing disks, damaged checkpoints, and two runs in one folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from conftest import TINY
from isonet import load_cfg
from isonet.errors import CheckpointError, StorageError
from isonet.files.checkpoint import read_checkpoint, save_checkpoint
from isonet.files.run_folder import LATEST, RunFolder
from isonet.files.storage import FolderLock, link_file, remove_leftovers, write_file
from isonet.training.log import log, log_to_file, log_to_terminal
from isonet.training.run import run_training
from launch import REPO, Script, run_script, start, wait_until

CFG = ["--cfg", REPO / "configs/digits_ISO20.yaml", "--output", "run"]

pytestmark = pytest.mark.usefixtures("no_pictures")


def cfg(tmp_path, *opts):
    return load_cfg(None, [*TINY, "OUTPUT_DIR", str(tmp_path), *opts])


@pytest.fixture
def mounted(tmp_path):
    """``mounted(kilobytes)`` mounts a file system of that size until the end of the test, and returns its folder."""
    places = []

    def mount(kilobytes):
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a tmpfs cannot be mounted here, which takes root")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=False)


def remount(place, option):
    subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)


def assert_one_error(result: Script, *words: str):
    assert result.returncode == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("free", [0, 4, 100, 400])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_incomplete_file(mounted, tally, free):
    disk = mounted(1024)
    save_checkpoint(disk / "c.pt", {"model": {}, "n": 1})
    before = (disk / "c.pt").read_bytes()
    with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    os.truncate(disk / "filler", (disk / "filler").stat().st_size - free * 1024)
    with pytest.raises(StorageError, match=r"c\.pt: .*No space left on device.*; .*intact"):
        write_file(disk / "c.pt", os.urandom(600 * 1024))
    assert (disk / "c.pt").read_bytes() == before
    assert sorted(file.name for file in disk.iterdir()) == ["c.pt", "filler"]
    tally("survived")


def test_a_run_whose_disk_fills_up_stops_with_a_complete_checkpoint_and_resumes_later(mounted, tmp_path, tally):
    keys = [*TINY[4:-2], "SOLVER.MAX_EPOCHS", 4, "RUNTIME.KEEP", 4]
    disk = mounted(1300)  # space for one or two checkpoints of about 300 kB, and the best one
    full = run_script("train.py", *CFG, *keys, "OUTPUT_DIR", disk, cwd=tmp_path)
    assert_one_error(full, "No space left on device")
    folder = RunFolder(disk / "digits/run")
    epoch = read_checkpoint(folder.latest)["epoch"]
    assert epoch >= 1
    assert not list(folder.path.glob(".*"))
    remount(disk, "size=20m")
    more = run_script("train.py", *CFG, "--resume", *keys, "OUTPUT_DIR", disk, cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    whole = run_training(load_cfg(CFG[1], [*keys, "OUTPUT_DIR", str(tmp_path / "whole")]), "run")
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
    tally("survived")


def test_a_read_only_folder(mounted, tmp_path, tally):
    disk = mounted(20_000)
    folder = RunFolder(disk / "digits/run")
    assert run_script("train.py", *CFG, *TINY, "OUTPUT_DIR", disk, cwd=tmp_path).returncode == 0
    before = contents(folder.path)
    remount(disk, "ro")
    for options in (["--resume"], ["--overwrite"]):
        result = run_script("train.py", *CFG, *options, *TINY, "OUTPUT_DIR", disk, cwd=tmp_path)
        assert_one_error(result, "Read-only file system", "OUTPUT_DIR")
    assert contents(folder.path) == before
    with pytest.raises(StorageError, match=r"Read-only.*intact"):
        write_file(folder.latest, b"x")
    tally("refused", 3)


def long_run(tmp_path) -> Script:
    """A run in its second epoch, after its first save."""
    process = start("train.py", *CFG, *TINY[4:-2], "SOLVER.MAX_EPOCHS", 100_000, cwd=tmp_path)
    wait_until(lambda: "epoch 1/" in process.stdout, process)
    return process


def test_a_folder_that_disappears_during_a_run(tmp_path, tally):
    process = long_run(tmp_path)
    moved = (tmp_path / "outputs/cls/digits/run").rename(tmp_path / "elsewhere")
    assert_one_error(process.wait(), "No such file or directory")
    assert read_checkpoint(moved / "latest.pt")["epoch"] >= 1
    tally("survived")


def test_a_second_run_names_the_process_that_uses_the_folder_and_a_killed_run_releases_it(tmp_path, tally):
    process = long_run(tmp_path)
    folder = RunFolder(tmp_path / "outputs/cls/digits/run")
    try:
        second = run_script("train.py", *CFG, "--resume", *TINY[4:], cwd=tmp_path)
        first = f"in use by process {process.pid} on {os.uname().nodename}"
        assert_one_error(second, "outputs/cls/digits/run", first)
        for options in ({"overwrite": True}, {}):
            with pytest.raises(CheckpointError, match=first):
                run_training(cfg(tmp_path / "outputs/cls"), "run", **options)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (folder.path / "lock").exists()
    done = len(folder.metrics.read_text().splitlines())
    third = run_script("train.py", *CFG, "--resume", *TINY[4:-1], done + 1, cwd=tmp_path)
    assert third.returncode == 0, third.stderr
    assert f"process {process.pid} on {os.uname().nodename}" in third.stdout
    assert not (folder.path / "lock").exists()
    tally("refused", 3)
    tally("survived")


def test_a_lock_is_released_after_every_kind_of_exit(tmp_path):
    with pytest.raises(ZeroDivisionError), FolderLock(tmp_path):
        raise ZeroDivisionError
    with FolderLock(tmp_path):
        assert f"process {os.getpid()} on {os.uname().nodename}" in (tmp_path / "lock.txt").read_text()
    assert not list(tmp_path.iterdir())
    with FolderLock(tmp_path / "not there yet") as lock:
        lock.path.parent.mkdir()
        lock.acquire()
        assert lock.path.exists()


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory):
    return run_training(cfg(tmp_path_factory.mktemp("runs"), "SOLVER.MAX_EPOCHS", 3), "whole")


def flip(path):
    """Change one bit in the middle of the file in place, so that the file changes under all of its names."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 16]))


def replace(path):
    """Replace the file by an incomplete copy, which does not change the file under its other names."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("damage", [flip, replace, lambda path: path.unlink()], ids=["bit", "truncated", "removed"])
def test_a_damaged_latest_checkpoint_is_named_and_the_previous_one_is_used(three_epochs, tmp_path, tally, damage):
    path = tmp_path / "digits/run"
    shutil.copytree(three_epochs.path, path)
    folder = RunFolder(path)
    folder.latest.unlink()
    link_file(path / "epoch0003.pt", folder.latest)  # one file with two names, as in a run
    damage(folder.latest)
    run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 3), "run", resume=LATEST)
    text = folder.log.read_text()
    first, *_ = [line for line in text.splitlines() if "warning: " in line]
    if damage is flip:  # the damage is under both names
        assert f"{folder.latest}: is damaged" in first
        assert "epoch0002.pt after epoch 2" in text
        assert (path / "epoch0003.pt.damaged").exists()
    else:
        assert "epoch0003.pt after epoch 3" in text
        assert f"{folder.latest} was not the newest" in first
    assert folder.metrics.read_bytes() == three_epochs.metrics.read_bytes()
    assert read_checkpoint(folder.latest)["epoch"] == 3
    assert folder.latest.samefile(folder.numbered()[-1])
    tally("survived")


def test_a_run_that_appears_while_another_run_loads_is_not_overwritten(tmp_path, monkeypatch, tally):
    """The folder appears between the first check and the lock, while the optimizer is built."""
    real = torch.optim.SGD.__init__

    def another_run_first(self, *args, **kwargs):
        monkeypatch.setattr(torch.optim.SGD, "__init__", real)
        run_training(cfg(tmp_path), "run")
        real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "__init__", another_run_first)
    with pytest.raises(CheckpointError, match=r"run.*--resume.*--overwrite"):
        run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 2), "run")
    assert len((tmp_path / "digits/run/metrics.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "digits/run/lock").exists()
    tally("refused")


def test_a_run_resumed_into_a_new_folder_has_a_checkpoint_before_its_first_save(three_epochs, tmp_path, tally):
    config = cfg(tmp_path, "SOLVER.MAX_EPOCHS", 3)
    folder = run_training(config, "copy", resume=str(three_epochs.path))
    assert folder.latest.read_bytes() == three_epochs.latest.read_bytes()
    run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 4), "copy", resume=LATEST)
    assert len(folder.metrics.read_text().splitlines()) == 4
    tally("survived")


def test_the_latest_checkpoint_can_be_resumed_by_its_other_name(three_epochs, tmp_path):
    path = tmp_path / "digits/run"
    shutil.copytree(three_epochs.path, path)
    (path / "latest.pt").unlink()
    link_file(path / "epoch0003.pt", path / "latest.pt")
    run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 4), "run", resume=str(path / "epoch0003.pt"))
    with pytest.raises(CheckpointError, match="is not its latest checkpoint"):
        run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 5), "run", resume=str(path / "epoch0003.pt"))
    for file in path.glob("*.pt"):
        if file.name != "best.pt":
            file.unlink()
    with pytest.raises(CheckpointError, match="is not its latest checkpoint"):
        run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 5), "run", resume=str(path / "best.pt"))


@pytest.mark.parametrize("out", ["/dev/full", "closed"])
def test_a_run_continues_without_its_terminal(tmp_path, tally, out):
    if out == "closed":  # after one line, as with head -1
        out = tmp_path / "pipe"
        os.mkfifo(out)
        threading.Thread(target=lambda: out.open().readline(), daemon=True).start()
    result = run_script("train.py", *CFG, *TINY, cwd=tmp_path, out=Path(out))
    assert result.returncode == 0, result.stderr
    assert len(result.stderr.splitlines()) <= 1
    assert "Traceback" not in result.stderr
    folder = RunFolder(tmp_path / "outputs/cls/digits/run")
    assert read_checkpoint(folder.latest)["epoch"] == 1
    assert "best top-1" in folder.log.read_text()
    tally("survived")


def test_a_damaged_checkpoint_does_not_replace_a_complete_one(tmp_path, tally):
    """The newer of the two kept checkpoints is damaged. A run resumes from the other, and is killed after one save."""
    opts = ["SOLVER.MAX_EPOCHS", 1, "RUNTIME.SAVE_EVERY", 11]  # after the last step: 1,437 images, 128 a step
    folder = run_training(cfg(tmp_path, *opts), "run")
    assert [file.name for file in folder.numbered()] == ["epoch0001-step000011.pt", "epoch0001.pt"]
    flip(folder.latest)
    run_training(cfg(tmp_path, *opts), "run", resume=LATEST)
    assert [file.name for file in folder.numbered()] == ["epoch0001-step000011.pt", "epoch0001.pt"]
    for file in folder.numbered():
        read_checkpoint(file)
    assert (folder.path / "epoch0001.pt.damaged").exists()
    tally("survived")


def test_if_every_checkpoint_is_damaged_the_error_says_so_and_no_file_changes(three_epochs, tmp_path, tally):
    path = tmp_path / "digits/run"
    shutil.copytree(three_epochs.path, path)
    for file in path.glob("*.pt"):
        replace(file)
    before = contents(path)
    with pytest.raises(CheckpointError, match=r"epoch0003.pt: is damaged.* 2 before it"):
        run_training(cfg(tmp_path), "run", resume=LATEST)
    assert contents(path) == before
    tally("refused")


def test_a_damaged_best_is_replaced(three_epochs, tmp_path, tally):
    path = tmp_path / "digits/run"
    shutil.copytree(three_epochs.path, path)
    replace(path / "best.pt")
    was_latest = read_checkpoint(path / "latest.pt")["best_epoch"] == 3  # the latest checkpoint replaces it
    folder = run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 4), "run", resume=LATEST)
    third, fourth = (json.loads(line)["top1"] for line in folder.metrics.read_text().splitlines()[2:])
    assert read_checkpoint(folder.best)["epoch"] == (3 if was_latest and third >= fourth else 4)
    assert "best.pt: is damaged" in folder.log.read_text()
    tally("survived")


def test_keep_bounds_how_many_are_kept(tmp_path):
    opts = ["SOLVER.MAX_EPOCHS", 3, "RUNTIME.SAVE_EVERY", 5]
    folder = run_training(cfg(tmp_path, *opts, "RUNTIME.KEEP", 4), "run")
    names = ["epoch0002.pt", "epoch0003-step000005.pt", "epoch0003-step000010.pt", "epoch0003.pt"]
    assert [file.name for file in folder.numbered()] == names
    assert folder.latest.samefile(folder.numbered()[-1])
    assert [read_checkpoint(file)["epoch"] for file in folder.numbered()] == [2, 2, 2, 3]
    run_training(cfg(tmp_path, *opts, "RUNTIME.KEEP", 1), "run", overwrite=True)
    assert [file.name for file in folder.numbered()] == ["epoch0003.pt"]


def test_only_the_incomplete_files_of_killed_processes_are_removed(tmp_path):
    ours = tmp_path / f".isonet-{'0a' * 8}.tmp"
    names = [".mine.tmp", ".latest.pt.1234.tmp", ".isonet-mine.tmp", "isonet.tmp", f".isonet-{'1b' * 8}.tmp"]
    ours.write_bytes(bytes(1000))
    for name in names[:-1]:
        (tmp_path / name).write_text("mine")
    (tmp_path / names[-1]).symlink_to("isonet.tmp")
    remove_leftovers(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names)


def test_a_log_that_cannot_be_written_is_reported_once(mounted, capsys):
    """Writing the log fails; the terminal still shows everything."""
    disk = mounted(4)
    log_to_terminal()
    log_to_file(disk / "log.txt")
    for _ in range(3):
        log.info("%s", "x" * 5000)
    remount(disk, "size=1m")  # so that the file can be closed
    output, errors = capsys.readouterr()
    assert output.count("x" * 5000) == 3
    (warning,) = errors.splitlines()
    assert warning.startswith("warning: ")
    assert "log.txt" in warning


def test_times_of_locks_are_readable(tmp_path):
    with FolderLock(tmp_path) as lock:
        since = lock.holder.read_text().split("since ")[1]
    assert abs(time.mktime(time.strptime(since, "%Y-%m-%d %H:%M:%S")) - time.time()) < 60
