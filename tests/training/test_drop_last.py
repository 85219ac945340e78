"""Runs without the last, incomplete batch: steps, rates, resuming, and checkpoints from before the key existed."""

from __future__ import annotations

import json

import pytest

from conftest import TINY, assert_same
from isonet import load_cfg
from isonet.config import flat, parse_cfg, read_written_cfg
from isonet.config.keys import BEFORE_THE_KEY, default_cfg
from isonet.files.checkpoint import read_checkpoint, save_checkpoint
from isonet.files.run_folder import LATEST
from isonet.training import learning_rate_at, loop
from isonet.training.run import run_training

# 1,437 images are 11 batches of 128, and 29 more images
STEPS, LEFT_OUT = 11, 29
ALL_IMAGES = ["SOLVER.DROP_LAST", False]

pytestmark = pytest.mark.usefixtures("no_pictures")


def cfg(tmp_path, *opts):
    return load_cfg(None, [*TINY, "OUTPUT_DIR", str(tmp_path), *opts])


def rows(folder):
    return [json.loads(line) for line in folder.metrics.open()]


def state(folder):
    found = read_checkpoint(folder.latest)
    for group in found["optimizer"]["param_groups"]:
        del group["lr"]  # each step sets it, but a run resumed after the last step of an epoch runs no step
    return {key: found[key] for key in ("model", "optimizer", "epoch", "best_top1", "best_epoch", "history")}


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of each step of the runs in a test."""
    found = []
    real = loop.set_learning_rate
    monkeypatch.setattr(loop, "set_learning_rate", lambda optimizer, rate: (found.append(rate), real(optimizer, rate)))
    return found


def test_the_log_says_how_many_steps_an_epoch_has_and_what_it_leaves_out(tmp_path):
    folder = run_training(cfg(tmp_path), "whole batches")
    told = "1437 images for training, 128 a step, 11 steps an epoch that leaves out 29 images (SOLVER.DROP_LAST), 360 "
    assert told in folder.log.read_text()
    folder = run_training(cfg(tmp_path, *ALL_IMAGES), "all images")
    assert "1437 images for training, 128 a step, 12 steps an epoch, 360 images for" in folder.log.read_text()


def test_a_set_smaller_than_a_batch_is_trained_on(tmp_path, rates):
    folder = run_training(cfg(tmp_path, "SOLVER.TRAIN_BATCH_SIZE", 1500, "RUNTIME.SAVE_EVERY", 1), "run")
    assert len(rates) == 1
    part = read_checkpoint(folder.numbered()[0])["part"]
    assert (part["taken"], part["sums"]["images"], part["sums"]["steps"]) == (1437, 1437, 1)
    assert "a step takes more images than there are" in folder.log.read_text()


@pytest.mark.parametrize("step", [4, STEPS])
@pytest.mark.parametrize("schedule", ["steps", "linear", "cosine"])
def test_a_run_resumed_within_an_epoch_or_at_its_end_is_bit_identical(tmp_path, schedule, step):
    """Step 11 is the last step of the epoch. A run resumed after it continues with the evaluation."""
    opts = ["SOLVER.SCHEDULE", schedule, "SOLVER.MAX_EPOCHS", 2, "RUNTIME.SAVE_EVERY", step, "RUNTIME.KEEP", 99]
    whole = run_training(cfg(tmp_path, *opts), "whole")
    for epoch in (1, 2):
        part = whole.path / f"epoch{epoch:04}-step{step:06}.pt"
        assert read_checkpoint(part)["part"]["taken"] == 128 * step
        resumed = run_training(cfg(tmp_path, *opts), f"resumed in {epoch}", resume=str(part))
        assert_same(state(resumed), state(whole))
        assert resumed.metrics.read_text() == whole.metrics.read_text()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_rate_that_falls_with_every_step_reaches_0_after_the_last_one(tmp_path, rates, schedule):
    opts = ["SOLVER.SCHEDULE", schedule, "SOLVER.BASE_LR", 0.05, "SOLVER.MAX_EPOCHS", 2]
    run_training(cfg(tmp_path, *opts), "run")
    assert len(rates) == 2 * STEPS
    config = cfg(tmp_path, *opts)
    steps = [(epoch, taken / STEPS) for epoch in (1, 2) for taken in range(STEPS)]
    assert rates == pytest.approx([learning_rate_at(config, epoch, done=done) for epoch, done in steps], rel=1e-12)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0
    assert learning_rate_at(config, 2, done=1.0) == 0.0
    if schedule == "linear":  # the next rate would be 0
        assert rates[-1] == pytest.approx(rates[-2] - rates[-1])


def test_the_rates_of_an_epoch_of_whole_batches_do_not_depend_on_the_key(tmp_path, rates):
    """1,437 images are three batches of 479, so the key leaves out no image, and the runs are equal."""
    opts = ["SOLVER.SCHEDULE", "linear", "SOLVER.TRAIN_BATCH_SIZE", 479, "SOLVER.MAX_EPOCHS", 2]
    one, other = (run_training(cfg(tmp_path, *opts, "SOLVER.DROP_LAST", drop), str(drop)) for drop in (True, False))
    assert len(rates) == 12
    assert rates[:6] == rates[6:]
    assert_same(state(one), state(other))


def test_a_new_batch_size_within_an_epoch_divides_the_remaining_images_into_whole_batches(tmp_path, rates):
    """The first run takes 640 of 1,437 images. Of the other 797, the second takes 7 batches of 100 and drops 97."""
    opts = ["SOLVER.SCHEDULE", "linear", "RUNTIME.SAVE_EVERY", 5, "RUNTIME.KEEP", 99]
    part = run_training(cfg(tmp_path, *opts), "run").path / "epoch0001-step000005.pt"
    rates.clear()
    opts += ["SOLVER.TRAIN_BATCH_SIZE", 100, "SOLVER.BASE_LR", 0.05]
    run_training(cfg(tmp_path, *opts), "smaller", resume=str(part))
    assert rates == pytest.approx([0.05 * (1 - (640 + 100 * step) / 1340) for step in range(7)])


def without_key(folder, path):
    """Save the latest checkpoint of ``folder`` as ``path``, with the config of a version without the key."""
    found = read_checkpoint(folder.latest)
    lines = found["config"].splitlines()
    assert sum("DROP_LAST" in line for line in lines) == 1
    save_checkpoint(path, {**found, "config": "\n".join(line for line in lines if "DROP_LAST" not in line)})
    return str(path)


NOT_USED = "SOLVER.DROP_LAST True is not used: the run of "


def test_a_checkpoint_without_the_key_resumes_with_all_images_each_time(tmp_path):
    whole = run_training(cfg(tmp_path, *ALL_IMAGES, "SOLVER.MAX_EPOCHS", 3), "whole")
    first = run_training(cfg(tmp_path, *ALL_IMAGES), "first")
    resume = without_key(first, tmp_path / "old.pt")
    for epochs in (2, 3):  # the same command, which does not set the key
        folder = run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", epochs), "resumed", resume=resume)
        resume = LATEST
        log = folder.log.read_text()
        assert log.count(NOT_USED) == epochs - 1
        assert log.count("12 steps an epoch,") == epochs - 1
        assert "another value" not in log
        assert parse_cfg(read_checkpoint(folder.latest)["config"], "it").SOLVER.DROP_LAST is False
        assert load_cfg(folder.config).SOLVER.DROP_LAST is False
    assert_same(state(folder), state(whole))
    assert rows(folder) == rows(whole)


def test_a_checkpoint_within_an_epoch_without_a_config_resumes_with_all_images(tmp_path):
    opts = [
        "SOLVER.SCHEDULE",
        "cosine",
        "RUNTIME.SAVE_EVERY",
        12,
        "RUNTIME.KEEP",
        9,
    ]  # 12: the last step of an epoch of all images
    whole = run_training(cfg(tmp_path, *ALL_IMAGES, *opts), "whole")
    found = read_checkpoint(whole.path / "epoch0001-step000012.pt")
    assert found["part"]["taken"] == 1437
    del found["config"]
    save_checkpoint(tmp_path / "old.pt", found)
    folder = run_training(cfg(tmp_path, *opts), "resumed", resume=str(tmp_path / "old.pt"))
    assert_same(state(folder), state(whole))
    assert "SOLVER.DROP_LAST True is not used" in folder.log.read_text()


@pytest.mark.parametrize("began", [True, False])
def test_a_run_keeps_its_first_value_and_logs_that(tmp_path, began):
    whole = run_training(cfg(tmp_path, "SOLVER.DROP_LAST", began, "SOLVER.MAX_EPOCHS", 2), "whole")
    run_training(cfg(tmp_path, "SOLVER.DROP_LAST", began), "run")
    other = cfg(tmp_path, "SOLVER.DROP_LAST", not began, "SOLVER.MAX_EPOCHS", 2)
    folder = run_training(other, "run", resume=LATEST)
    assert_same(state(folder), state(whole))
    log = folder.log.read_text()
    assert log.count(f"SOLVER.DROP_LAST {not began} is not used: the run of ") == 1
    assert f" began with {began}" in log
    assert "another value" not in log


def test_a_written_config_older_than_a_key_has_the_behaviour_of_its_run(tmp_path):
    assert BEFORE_THE_KEY.items() <= {key: not value for key, value in flat(default_cfg()).items()}.items()
    text = "".join(line for line in load_cfg().dump().splitlines(keepends=True) if "DROP_LAST" not in line)
    (tmp_path / "config.yaml").write_text(text)
    for found in (parse_cfg(text, "a checkpoint"), read_written_cfg(tmp_path / "config.yaml")):
        assert flat(found) == {**flat(load_cfg()), "SOLVER.DROP_LAST": False}
    assert load_cfg(tmp_path / "config.yaml").SOLVER.DROP_LAST  # read as the config of a new run
    assert parse_cfg(text, "a checkpoint", ["SOLVER.DROP_LAST", True]).SOLVER.DROP_LAST
