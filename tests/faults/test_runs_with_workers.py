"""Complete runs that read image files in worker processes, with faults of these processes and files."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from isonet import load_cfg
from isonet.errors import DataError
from isonet.files.checkpoint import read_checkpoint
from isonet.files.run_folder import RunFolder
from isonet.tools.trained import evaluate_on_ranks
from isonet.training.distributed import ALONE
from isonet.training.run import run_training
from launch import REPO, Script, run_script, start, wait_until

# 8 steps an epoch of 64 images
KEYS = [
    "DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 2, "DATASET.IMAGE_SIZE", 32, "RUNTIME.INPUT", "workers",
    "DATASET.NUM_WORKERS", 2, "ISON.DEPTH", 11, "ISON.DROPOUT", True, "ISON.DROPOUT_RATE", 0.3,
    "SOLVER.TRAIN_BATCH_SIZE", 8, "SOLVER.MAX_EPOCHS", 3, "RUNTIME.SAVE_EVERY", 3,
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("no_pictures")
ARGS = ["--cfg", REPO / "configs/self_ISO29.yaml", "--output", "run"]


def make_images(tmp_path):
    for split, count in (("train", 32), ("val", 8)):
        for name in ("a", "b"):
            folder = tmp_path / "data/mine" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                stream = torch.Generator().manual_seed(i)
                pixels = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8, generator=stream)
                Image.fromarray(pixels.numpy()).save(folder / f"{i:02}.png")
    return tmp_path / "data/mine"


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without faults."""
    cwd = tmp_path_factory.mktemp("whole")
    make_images(cwd)
    assert run_script("train.py", *ARGS, *KEYS, cwd=cwd).returncode == 0
    return RunFolder(cwd / "outputs/cls/mine/run")


def started(cwd, *keys) -> Script:
    return start("train.py", *ARGS, *keys, cwd=cwd)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def assert_gone(pids: list[int], seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "workers outlive their run"
        time.sleep(0.1)


LONG = [*KEYS[:-4], "SOLVER.MAX_EPOCHS", 100_000, "RUNTIME.SAVE_EVERY", 3]


@pytest.mark.parametrize("how", ["kill -9", "SIGTERM to the group"])
def test_a_run_with_workers_resumes_with_the_next_batch(whole, images, tmp_path, tally, how):
    folder = RunFolder(tmp_path / "outputs/cls/mine/run")
    process = started(tmp_path, *KEYS)
    wait_until((folder.path / "epoch0002-step000003.pt").exists, process)
    workers = children(process.pid)
    assert len(workers) >= 2
    if how == "kill -9":
        process.send_signal(signal.SIGKILL)
        output = process.wait().output
    else:
        os.killpg(process.pid, signal.SIGTERM)
        output = process.wait().output
        assert process.returncode == 75, output
        assert "stopped: by SIGTERM in epoch 2 after step" in output
        assert "Traceback" not in output
    assert_gone(workers, 20)  # torch checks for the main process every five seconds
    more = run_script("train.py", *ARGS, "--resume", *KEYS, cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
    one, other = read_checkpoint(folder.latest), read_checkpoint(whole.latest)
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
    for index, state in one["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], other["optimizer"]["state"][index]["momentum_buffer"])
    tally("survived")


def test_a_killed_worker_ends_the_run_with_one_sentence_and_complete_checkpoints(images, tmp_path, tally):
    folder = RunFolder(tmp_path / "outputs/cls/mine/run")
    process = started(tmp_path, *LONG)
    wait_until((folder.path / "epoch0002.pt").exists, process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    output = process.wait().output
    assert process.returncode == 2, output
    assert "error: a process that reads images (pid" in output.splitlines()[-1], output
    assert "SIGKILL" in output
    assert "Traceback" not in output
    assert read_checkpoint(folder.latest)["epoch"] >= 2
    assert "SIGKILL" in folder.log.read_text()
    tally("survived")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_an_image_that_disappears_during_a_run(images, tmp_path, tally, on_error):
    folder = RunFolder(tmp_path / "outputs/cls/mine/run")
    keys = [*KEYS[:-4], "SOLVER.MAX_EPOCHS", 6, "DATASET.ON_ERROR", on_error]
    process = started(tmp_path, *keys)
    wait_until((folder.path / "latest.pt").exists, process)
    (images / "train/b/07.png").unlink()
    output = process.wait().output
    assert "Traceback" not in output
    if on_error == "stop":
        assert process.returncode == 2, output
        assert "error: data/mine/train/b/07.png: " in output.splitlines()[-1]
        assert "DATASET.ON_ERROR skip" in output
        tally("refused")
    else:
        assert process.returncode == 0, output
        assert output.count("data/mine/train/b/07.png") >= 1
        assert (folder.path / "skipped.txt").read_text().startswith("train: data/mine/train/b/07.png: ")
        assert len(folder.metrics.read_text().splitlines()) == 6
        tally("survived")
    assert read_checkpoint(folder.latest)["epoch"] >= 1


@pytest.mark.parametrize("inputs", ["workers", "memory"])
def test_unreadable_images_of_training_and_evaluation_are_counted_and_listed(
    images, tmp_path, tally, inputs, monkeypatch, caplog
):
    bad = ["train/a/01.png", "train/b/30.png", "val/a/02.png"]
    for name in bad:
        (images / name).write_bytes((images / name).read_bytes()[:100])
    monkeypatch.chdir(tmp_path)
    keys = [*KEYS[:-4], "SOLVER.MAX_EPOCHS", 1, "RUNTIME.INPUT", inputs, "DATASET.ON_ERROR", "skip"]
    folder = run_training(load_cfg(ARGS[1], keys), "run")
    assert [line.split(": ")[:2] for line in (folder.path / "skipped.txt").read_text().splitlines()] == [
        [name.split("/")[0], f"data/mine/{name}"] for name in bad
    ]
    assert all(f"data/mine/{name}" in caplog.text for name in bad)
    caplog.clear()
    cpu = [torch.device("cpu")]
    assert evaluate_on_ranks("run", ARGS[1], ALONE, cpu, keys)[0].images == 15
    assert f"data/mine/{bad[2]}" in caplog.text
    with pytest.raises(DataError, match=f"data/mine/{bad[2]}"):
        evaluate_on_ranks("run", ARGS[1], ALONE, cpu, keys[:-2])
    tally("survived", 3)
    tally("refused")
