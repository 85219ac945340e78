"""Complete runs on the digits: the files that they write, resuming, reproducibility, and refusals."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import TINY, assert_same
from isonet import load_cfg
from isonet.config import flat, parse_cfg
from isonet.errors import CheckpointError, ConfigError, DataError, NonFiniteError, StorageError
from isonet.files.checkpoint import read_checkpoint, save_checkpoint
from isonet.files.run_folder import LATEST
from isonet.training.run import run_training

DROPOUT = [
    "ISON.DROPOUT",
    True,
    "ISON.DROPOUT_RATE",
    0.3,
]  # dropout draws from torch's global stream, which each step seeds anew


def cfg(tmp_path, *opts):
    return load_cfg(None, [*TINY, "OUTPUT_DIR", str(tmp_path), *opts])


def rows(folder):
    return [json.loads(line) for line in folder.metrics.open()]


def state(folder):
    found = read_checkpoint(folder.latest)
    return {key: found[key] for key in ("model", "optimizer", "epoch", "best_top1", "best_epoch")}


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory):
    """An uninterrupted run of three epochs."""
    return run_training(cfg(tmp_path_factory.mktemp("runs"), "SOLVER.MAX_EPOCHS", 3, *DROPOUT), "whole")


def test_a_run_writes_everything_that_is_needed_to_understand_it(three_epochs):
    folder = three_epochs
    found = rows(folder)
    assert [row["epoch"] for row in found] == [1, 2, 3]
    assert set(found[0]) == {
        "epoch", "learning_rate", "cross_entropy", "penalty", "train_top1", "train_top5", "top1", "top5", "val_loss",
    }  # fmt: skip
    assert found[-1]["cross_entropy"] < found[0]["cross_entropy"]
    timing = [json.loads(line) for line in folder.timing.open()]
    assert [set(row) for row in timing] == [{"epoch", "images_per_second", "data_wait_seconds", "seconds"}] * 3
    best = max(found, key=lambda row: row["top1"])
    assert read_checkpoint(folder.best)["epoch"] == best["epoch"]
    latest = read_checkpoint(folder.latest)
    assert latest["epoch"] == 3
    assert not any(name.startswith("module.") for name in latest["model"])
    assert latest["classes"] == [str(digit) for digit in range(10)]
    assert flat(parse_cfg(latest["config"], "checkpoint")) == flat(load_cfg(folder.config))
    assert json.loads(folder.versions.read_text())["torch"] == torch.__version__
    assert "epoch 3/3" in folder.log.read_text()


def test_the_same_seed_gives_a_bit_identical_run_and_another_seed_does_not(three_epochs, tmp_path):
    again = run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 3, *DROPOUT), "again")
    assert_same(state(again), state(three_epochs))
    assert rows(again) == rows(three_epochs)
    other = run_training(cfg(tmp_path, *DROPOUT, "RUNTIME.SEED", 1), "other")
    assert rows(other)[0] != rows(three_epochs)[0]


@pytest.mark.parametrize("how", ["latest", "file", "folder"])
def test_a_resumed_run_equals_an_uninterrupted_run(three_epochs, tmp_path, how):
    folder = run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 2, *DROPOUT), "part")
    with folder.metrics.open("a") as file:
        file.write('{"epoch": 3, "killed before it was saved": 1}\n')
    torch.manual_seed(999)  # the state of the random numbers does not matter
    resume = {"latest": LATEST, "file": str(folder.latest), "folder": str(folder.path)}[how]
    run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 3, *DROPOUT), "part", resume=resume)
    assert_same(state(folder), state(three_epochs))
    assert rows(folder) == rows(three_epochs)
    assert "another value" not in folder.log.read_text()


def test_resuming_into_a_new_folder_and_with_other_keys(three_epochs, tmp_path):
    changed = cfg(tmp_path, "SOLVER.MAX_EPOCHS", 4, *DROPOUT, "SOLVER.BASE_LR", 0.01)
    folder = run_training(changed, "branch", resume=str(three_epochs.latest))
    assert [row["epoch"] for row in rows(folder)] == [1, 2, 3, 4]
    assert rows(folder)[:3] == rows(three_epochs)
    assert "another value of SOLVER.BASE_LR 0.05 -> 0.01" in folder.log.read_text()


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_falling_rate_is_set_for_each_step_and_its_end_is_part_of_the_run(tmp_path, drop_last):
    falling = ["SOLVER.SCHEDULE", "linear", "SOLVER.BASE_LR", 0.05, "SOLVER.DROP_LAST", drop_last]
    config = cfg(tmp_path, "SOLVER.MAX_EPOCHS", 2, *falling, "RUNTIME.SAVE_EVERY", 5, "RUNTIME.KEEP", 100)
    folder = run_training(config, "falling")
    images, size = read_checkpoint(folder.latest)["num_images"], config.SOLVER.TRAIN_BATCH_SIZE
    for file in folder.numbered():
        found = read_checkpoint(file)
        part = found["part"]
        whole = images // size * size
        before_last = whole - size if drop_last else whole  # images of the epoch before its last step
        last = part["taken"] - size if part else before_last
        epochs = found["epoch"] + bool(part) - 1 + last / (whole if drop_last else images)
        assert found["optimizer"]["param_groups"][1]["lr"] == pytest.approx(0.05 * (1 - epochs / 2)), file
    again = run_training(config, "again", resume=str(folder.path / "epoch0002-step000005.pt"))
    assert_same(state(again), state(folder))
    run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 3, *falling), "falling", resume=LATEST)
    assert "another value of SOLVER.MAX_EPOCHS 2 -> 3" in folder.log.read_text()


def test_an_unused_warm_up_factor_is_reported_once_at_the_start_and_at_a_resume(tmp_path):
    ramp = ["SOLVER.WARMUP", True, "SOLVER.WARMUP_EPOCH", 10, "SOLVER.MAX_EPOCHS"]
    folder = run_training(cfg(tmp_path, *ramp, 2), "run")
    told = "SOLVER.WARMUP_FACTOR 0.2 is not used: with SOLVER.SCHEDULE steps the warm-up is "
    assert folder.log.read_text().count(told) == 1
    run_training(cfg(tmp_path, *ramp, 3), "run", resume=LATEST)
    assert folder.log.read_text().count(told) == 2
    assert [row["learning_rate"] for row in rows(folder)] == [0.05 * epoch / 10 for epoch in (1, 2, 3)]
    silent = run_training(cfg(tmp_path, *ramp, 1, "SOLVER.WARMUP_FACTOR", 0.1), "silent")
    assert "WARMUP_FACTOR" not in silent.log.read_text()


def test_a_folder_that_contains_a_run_is_not_changed(three_epochs):
    before = {file.name: file.read_bytes() for file in three_epochs.path.iterdir()}
    config = cfg(three_epochs.path.parent.parent, *DROPOUT)
    with pytest.raises(CheckpointError, match=r"already holds a run.*--resume.*--overwrite"):
        run_training(config, "whole")
    with pytest.raises(CheckpointError, match="give one of them"):
        run_training(config, "whole", resume=LATEST, overwrite=True)
    with pytest.raises(ConfigError):  # an error found later does not delete the old run either
        run_training(cfg(three_epochs.path.parent.parent, "ISON.DEPTH", 9), "whole", overwrite=True)
    with pytest.raises(DataError):
        run_training(cfg(three_epochs.path.parent.parent, "DATASET.NUM_CLASSES", 9), "whole", overwrite=True)
    assert {file.name: file.read_bytes() for file in three_epochs.path.iterdir()} == before


def test_overwrite_starts_from_scratch(tmp_path):
    folder = run_training(cfg(tmp_path), "a")
    (folder.path / "notes.txt").write_text("mine")
    run_training(cfg(tmp_path, "RUNTIME.SEED", 5), "a", overwrite=True)
    assert len(rows(folder)) == 1
    assert "SEED: 5" in folder.config.read_text()
    assert (folder.path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("resume", "words"),
    [
        (LATEST, "no checkpoint to resume"),
        ("gone.pt", "--resume gone.pt: no such checkpoint"),
        ("weights.pt", "lacks optimizer"),
    ],
)
def test_what_cannot_be_resumed_is_explained(tmp_path, monkeypatch, resume, words):
    monkeypatch.chdir(tmp_path)
    from isonet import build_model

    config = cfg(tmp_path)
    save_checkpoint(tmp_path / "weights.pt", {"model": build_model(config).state_dict()})
    with pytest.raises(CheckpointError, match=words):
        run_training(config, "new", resume=resume)


def test_another_network_is_not_resumed_and_leaves_no_trace(three_epochs, tmp_path):
    before = {file.name: file.read_bytes() for file in three_epochs.path.iterdir()}
    with pytest.raises(CheckpointError, match="belongs to another network"):
        run_training(cfg(tmp_path, "ISON.DEPTH", 14), "deeper", resume=str(three_epochs.latest))
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="belongs to another network"):
        run_training(cfg(three_epochs.path.parent.parent, "ISON.DEPTH", 14), "whole", resume=LATEST)
    assert {file.name: file.read_bytes() for file in three_epochs.path.iterdir()} == before


def test_resuming_into_a_new_folder_copies_the_best_checkpoint(three_epochs, tmp_path):
    config = cfg(tmp_path, "SOLVER.MAX_EPOCHS", 3, *DROPOUT)
    folder = run_training(config, "copy", resume=str(three_epochs.latest))
    assert folder.best.read_bytes() == three_epochs.best.read_bytes()
    (tmp_path / "alone.pt").write_bytes(three_epochs.latest.read_bytes())
    more = cfg(tmp_path, "SOLVER.MAX_EPOCHS", 4, "SOLVER.BASE_LR", 0.0, *DROPOUT)
    folder = run_training(more, "alone", resume=str(tmp_path / "alone.pt"))
    assert read_checkpoint(folder.best)["epoch"] == 4


def test_an_older_checkpoint_does_not_rewind_its_own_folder(tmp_path):
    config = cfg(tmp_path, "SOLVER.MAX_EPOCHS", 2)
    folder = run_training(config, "a")
    (folder.path / "old.pt").write_bytes(folder.best.read_bytes())
    with pytest.raises(CheckpointError, match="choose another --output"):
        run_training(config, "a", resume=str(folder.path / "old.pt"))
    assert len(rows(folder)) == 2


def test_a_run_that_saved_nothing_is_replaced_not_resumed(tmp_path):
    with pytest.raises(NonFiniteError):
        run_training(cfg(tmp_path, "SOLVER.BASE_LR", 1e5), "a")
    with pytest.raises(CheckpointError, match=r"saved nothing.*--overwrite"):
        run_training(cfg(tmp_path), "a")
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume.*--overwrite"):
        run_training(cfg(tmp_path), "a", resume=LATEST)


def test_a_resumed_run_takes_the_optimiser_settings_of_its_config(three_epochs, tmp_path):
    changed = cfg(tmp_path, "SOLVER.MAX_EPOCHS", 4, *DROPOUT, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.MOMENTUM", 0.1)
    folder = run_training(changed, "branch", resume=str(three_epochs.latest))
    group = read_checkpoint(folder.latest)["optimizer"]["param_groups"][1]
    assert (group["weight_decay"], group["momentum"]) == (0.5, 0.1)


def test_a_divergence_in_the_last_step_is_not_saved(tmp_path):
    one_step = ["ISON.DEPTH", 20, "SOLVER.TRAIN_BATCH_SIZE", 1437, "SOLVER.BASE_LR", 1e6]
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 1, .*nothing was saved"):
        run_training(cfg(tmp_path, *one_step), "a")
    assert not list(tmp_path.rglob("*.pt"))


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing_of_it(tmp_path):
    folder = run_training(cfg(tmp_path), "a")
    good = folder.latest.read_bytes()
    with pytest.raises(NonFiniteError) as error:
        run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 2, "SOLVER.BASE_LR", 1e5), "a", resume=LATEST)
    for word in ("epoch 2, step ", "rate of 100000", str(folder.latest), "SOLVER.BASE_LR"):
        assert word in str(error.value)
    assert folder.latest.read_bytes() == good
    assert str(error.value) in folder.log.read_text()
    assert len(rows(folder)) == 1


def test_an_output_dir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="OUTPUT_DIR"):
        run_training(cfg(tmp_path / "file"), "a")
