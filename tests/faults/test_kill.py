"""Processes that are really killed with SIGKILL: what is left goes on to the very run that would have been."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from conftest import REPO, assert_same
from isonet.files.checkpoint import read_checkpoint
from isonet.files.run_folder import RunFolder
from isonet.training.stop import StopSignals

VICTIM = Path(__file__).parent / "victim.py"
# 11 steps and 2 batches of validation in each of 3 epochs; dropout draws from a stream that each step names
ARGS = [
    "--cfg", REPO / "configs/digits_ISO20.yaml", "--output", "run", "ISON.DEPTH", 8, "ISON.DROPOUT", True,
    "ISON.DROPOUT_RATE", 0.3, "SOLVER.TRAIN_BATCH_SIZE", 128, "SOLVER.TEST_BATCH_SIZE", 200, "SOLVER.MAX_EPOCHS", 3,
    "RUNTIME.SAVE_EVERY", 5,
]  # fmt: skip
# How often each moment comes in a whole run, about: a number to draw from
MOMENTS = {"step": 12, "validation": 3, "part": 10, "fsync": 12, "rename": 10, "link": 5, "append": 3}


def start(cwd: Path, *options: str, keys=(), before=(), script: Path = REPO / "train.py", moment: tuple = ()):
    arguments = [*moment, *ARGS[:4], *options, *ARGS[4:], *keys]
    command = [*before, sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )  # fmt: skip


def folder(cwd: Path) -> RunFolder:
    return RunFolder(cwd / "outputs/cls/digits/run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing disturbed, and the seconds it took to train."""
    cwd = tmp_path_factory.mktemp("whole")
    process = start(cwd)
    begun = wait_for_training(process)
    process.communicate(timeout=300)
    assert process.returncode == 0
    return folder(cwd), time.monotonic() - begun


def wait_for_training(process: subprocess.Popen) -> float:
    for line in process.stdout:
        if "images for training" in line:
            return time.monotonic()
    raise AssertionError("the run ended before it had begun")


def assert_same_run(found: RunFolder, expected: RunFolder):
    """Weights, optimiser, metrics and best, to the bit."""
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


def killed(cwd: Path, moment: tuple[str, float]) -> bool:
    """Start or resume the run; returns whether it was killed at ``moment``, or ended before that."""
    kind, count = moment
    resume = ["--resume"] if any(folder(cwd).resumable()) else ["--overwrite"]
    if kind == "time":
        process = start(cwd, *resume)
        time.sleep(max(0, wait_for_training(process) + count - time.monotonic()))
        process.send_signal(signal.SIGKILL)
    else:
        process = start(cwd, *resume, script=VICTIM, moment=moment)
    output, _ = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), output
    assert "Traceback" not in output
    return process.returncode != 0


def test_kill_9_at_random_moments_costs_nothing(whole, tmp_path, torture, tally):
    expected, seconds = whole
    rng = random.Random(0)
    kills, wanted, run = 0, 30 if torture else 3, 0
    while kills < wanted:
        run += 1
        cwd = tmp_path / f"run{run}"
        cwd.mkdir()
        while killed(cwd, draw_moment(rng, seconds) if kills < wanted else ("step", 10**6)):
            kills += 1
            tally("survived")
        assert_same_run(folder(cwd), expected)
    print(f"{kills} kills in {run} runs")


@pytest.mark.parametrize("moment", [("part", 8), ("rename", 11), ("link", 4), ("append", 1), ("validation", 1)])
def test_kill_9_at_the_worst_moments(whole, tmp_path, torture, tally, moment):
    """Half a checkpoint written; written and not named; named and not the latest; saved and not in the metrics."""
    if not torture and moment[0] in ("rename", "validation"):
        pytest.skip("one of the long form's: make torture")
    assert killed(tmp_path, moment)
    assert not killed(tmp_path, ("step", 10**6))
    assert_same_run(folder(tmp_path), whole[0])
    tally("survived")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_polite_signal_saves_within_the_epoch_and_says_how_to_go_on(whole, tmp_path, torture, tally, name):
    if not torture and name in ("SIGUSR1", "SIGHUP"):
        pytest.skip("one of the long form's: make torture")
    process = start(tmp_path)
    while not (folder(tmp_path).path / "epoch0001-step000005.pt").exists():
        time.sleep(0.001)
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert f"{name}: stopping after this step" in output
    assert f"stopped: by {name}" in output
    assert "the same command with --resume (or --resume auto) goes on" in output
    assert "Traceback" not in output
    assert f"by {name}" in folder(tmp_path).log.read_text()
    assert not killed(tmp_path, ("step", 10**6))
    assert_same_run(folder(tmp_path), whole[0])
    tally("survived")


def test_an_interrupt_that_a_destructor_swallows_comes_again(tally):
    """Python prints an exception that a destructor raises, and goes on as if there were none."""

    class Swallows:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # here it is raised

    stop = StopSignals()

    def interrupted():
        with stop, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pytest's, of the exception that was lost
            os.kill(os.getpid(), signal.SIGTERM)
            Swallows()
            gc.collect()
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stop.received == "SIGTERM"
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    tally("survived")


def test_nohup_is_obeyed(tmp_path, tally):
    process = start(tmp_path, before=("nohup",))
    wait_for_training(process)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    tally("survived")


def test_a_second_ctrl_c_stops_at_once(tmp_path, tally):
    """In a step of many seconds."""
    process = start(tmp_path, keys=("DATASET.IMAGE_SIZE", 64, "ISON.DEPTH", 110, "SOLVER.TRAIN_BATCH_SIZE", 256))
    begun = wait_for_training(process)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "the step was too short to test this"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert time.monotonic() - begun < 20
    assert "Traceback" not in output
    assert not list(tmp_path.rglob("*.pt"))
    tally("survived")
