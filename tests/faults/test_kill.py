"""Processes that are killed with SIGKILL: a resumed run is bit-identical to an uninterrupted run."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import REPO, assert_same
from isonet.files.checkpoint import read_checkpoint
from isonet.files.run_folder import RunFolder
from launch import Script, start, wait_until
from victim import die_at, never_end_a_step, swallow_an_interrupt

# 11 steps and 2 batches of validation in each of 3 epochs; dropout draws from a random stream that each step seeds
KEYS = [
    "ISON.DEPTH", 8, "ISON.DROPOUT", True, "ISON.DROPOUT_RATE", 0.3, "SOLVER.TRAIN_BATCH_SIZE", 128,
    "SOLVER.TEST_BATCH_SIZE", 200, "SOLVER.MAX_EPOCHS", 3, "RUNTIME.SAVE_EVERY", 5,
]  # fmt: skip
CFG = ["--cfg", REPO / "configs/digits_ISO20.yaml", "--output", "run"]
# About how often each moment occurs in a whole run: the range of the random number
MOMENTS = {"step": 12, "validation": 3, "part": 10, "fsync": 12, "rename": 10, "link": 5, "append": 3}


def train(cwd: Path, *options: str, first=None) -> Script:
    return start("train.py", *CFG, *options, *KEYS, cwd=cwd, first=first)


def folder(cwd: Path) -> RunFolder:
    return RunFolder(cwd / "outputs/cls/digits/run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunFolder:
    """An uninterrupted run."""
    cwd = tmp_path_factory.mktemp("whole")
    process = train(cwd).wait()
    assert process.returncode == 0, process.output
    return folder(cwd)


def assert_same_run(found: RunFolder, expected: RunFolder):
    """Assert that weights, optimiser state, metrics and best checkpoint are bit-identical."""
    assert found.metrics.read_bytes() == expected.metrics.read_bytes()
    for a, b in ((found.latest, expected.latest), (found.best, expected.best)):
        one, other = read_checkpoint(a), read_checkpoint(b)
        for key in ("model", "optimizer", "epoch", "best_top1", "best_epoch", "history", "part"):
            assert_same(one[key], other[key])
    assert not list(found.path.glob("*lock*"))
    assert not list(found.path.glob(".*"))


def draw_moment(rng: random.Random, seconds: float) -> tuple[str, float]:
    kind = rng.choice([*MOMENTS, "time", "time"])
    return kind, rng.uniform(0, seconds) if kind == "time" else rng.randint(1, MOMENTS[kind])


def killed(cwd: Path, kind: str, count: float) -> bool:
    """Start or resume the run, and return whether it was killed at that moment instead of ending before."""
    resume = "--resume" if any(folder(cwd).resumable()) else "--overwrite"
    if kind == "time":
        process = train(cwd, resume)
        wait_until(lambda: "images for training" in process.stdout, process)
        time.sleep(count)
        process.send_signal(signal.SIGKILL)
    else:
        process = train(cwd, resume, first=functools.partial(die_at, kind, count))
    process.wait()
    assert process.returncode in (0, -signal.SIGKILL), process.output
    assert "Traceback" not in process.output
    return process.returncode != 0


def finish(cwd: Path) -> None:
    process = train(cwd, "--resume").wait()
    assert process.returncode == 0, process.output
    assert "Traceback" not in process.output


@pytest.mark.torture
def test_kill_9_at_random_moments_does_not_change_the_run(whole, tmp_path, tally):
    seconds = sum(json.loads(line)["seconds"] for line in whole.timing.read_text().splitlines())
    rng = random.Random(0)
    kills, wanted, run = 0, 30, 0
    while kills < wanted:
        run += 1
        cwd = tmp_path / f"run{run}"
        cwd.mkdir()
        while killed(cwd, *(draw_moment(rng, seconds) if kills < wanted else ("step", 10**6))):
            kills += 1
            tally("survived")
        assert_same_run(folder(cwd), whole)
    print(f"{kills} kills in {run} runs")


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("part", 8),
        pytest.param("rename", 11, marks=pytest.mark.torture),
        ("link", 4),
        ("append", 1),
        pytest.param("validation", 1, marks=pytest.mark.torture),
    ],
)
def test_kill_9_at_critical_moments(whole, tmp_path, tally, kind, count):
    """A checkpoint that is half written, not yet renamed, not yet the latest, or saved but not in the metrics."""
    assert killed(tmp_path, kind, count)
    finish(tmp_path)
    assert_same_run(folder(tmp_path), whole)
    tally("survived")


@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        "SIGINT",
        pytest.param("SIGUSR1", marks=pytest.mark.torture),
        pytest.param("SIGXCPU", marks=pytest.mark.torture),
        pytest.param("SIGHUP", marks=pytest.mark.torture),
    ],
)
def test_a_signal_stops_the_run_within_the_epoch_and_it_resumes_with_the_next_batch(whole, tmp_path, tally, name):
    process = train(tmp_path)
    wait_until((folder(tmp_path).path / "epoch0001-step000005.pt").exists, process)
    process.send_signal(getattr(signal, name))
    process.wait()
    assert process.returncode == 75, process.output
    noted, stopped = [line for line in process.stderr.splitlines() if line]
    assert noted.startswith(f"{name}: ")
    assert re.match(rf"stopped: by {name} in epoch \d after step \d+; .*latest\.pt.*--resume", stopped)
    assert f"by {name}" in folder(tmp_path).log.read_text()
    finish(tmp_path)
    assert_same_run(folder(tmp_path), whole)
    tally("survived")


def test_a_second_ctrl_c_stops_immediately(tmp_path, tally):
    """The training step never ends."""
    process = train(tmp_path, first=never_end_a_step)
    wait_until(lambda: "in the step" in process.stdout, process)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: "SIGINT: " in process.stderr, process)
    process.send_signal(signal.SIGINT)
    process.wait()
    assert process.returncode == 130, process.output
    assert "Traceback" not in process.output
    assert not list(tmp_path.rglob("*.pt"))
    tally("survived")


def test_a_second_ctrl_c_that_a_destructor_swallows_is_raised_again(tmp_path, tally):
    """Python prints an exception that a destructor raises, and continues."""
    process = train(tmp_path, first=swallow_an_interrupt).wait()
    assert process.returncode == 130, process.output
    assert not list(tmp_path.rglob("*.pt"))
    tally("survived")


def test_nohup_is_respected(tmp_path, tally):
    """A new interpreter starts with the signal ignored."""
    (tmp_path / "out").touch()
    command = ["nohup", sys.executable, REPO / "train.py", *CFG, *KEYS[:-4], "SOLVER.MAX_EPOCHS", 1]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [*map(str, command)], cwd=tmp_path, stdout=out, stderr=out, env={**os.environ, "PYTHONPATH": str(REPO)}
        )
    wait_until(lambda: "images for training" in (tmp_path / "out").read_text(), process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 0, (tmp_path / "out").read_text()
    assert folder(tmp_path).latest.exists()
    tally("survived")
