"""The classes of a run: resumed and fine-tuned runs keep the class of each output, or raise an error or a warning."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from conftest import TINY, assert_same
from isonet import load_cfg
from isonet.classes import wordnet_ids
from isonet.errors import CheckpointError
from isonet.files.checkpoint import read_checkpoint, save_checkpoint
from isonet.files.run_folder import LATEST
from isonet.training.finetune import classes_of_head
from isonet.training.run import run_training

pytestmark = pytest.mark.usefixtures("no_pictures")

LETTERS, NUMBERS = ["a", "b", "c"], ["1", "10", "2"]  # both in the order of text


def write(root, names):
    """Write the same images below class folders with these names."""
    rng = np.random.default_rng(0)
    for split, each in (("train", 8), ("val", 5)):
        for name in names:
            folder = root / "set" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(each):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return root


def train(root, *opts, resume=None, output="run"):
    cfg = load_cfg(None, ["DATASET.ROOT", str(root), "DATASET.NAME", "set", "DATASET.NUM_CLASSES", 3, "ISON.DEPTH", 8,
        "DATASET.IMAGE_SIZE", 8, "SOLVER.TRAIN_BATCH_SIZE", 8, "SOLVER.MAX_EPOCHS", 1, "OUTPUT_DIR", str(root / "runs"),
        *opts])  # fmt: skip
    return run_training(cfg, output, resume=resume)


def rename(folder, classes):
    """Change the names of the classes in a run's checkpoints."""
    for file in folder.path.glob("*.pt"):
        state = read_checkpoint(file)
        save_checkpoint(file, {**state, "classes": classes})


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """A run on three classes with letters as names, resumed after its first epoch."""
    root = write(tmp_path_factory.mktemp("letters"), LETTERS)
    train(root)
    return train(root, "SOLVER.MAX_EPOCHS", 2, resume=LATEST)


def test_a_run_of_a_former_version_on_numbers_resumes_in_its_order(two_epochs, tmp_path):
    """The folders have numbers as names instead of letters. A former version sorted numbers as text."""
    folder = train(write(tmp_path, LETTERS))
    (tmp_path / "set").rename(tmp_path / "letters")
    write(tmp_path, NUMBERS)
    rename(folder, NUMBERS)
    train(tmp_path, "SOLVER.MAX_EPOCHS", 2, resume=LATEST)
    resumed, whole = read_checkpoint(folder.latest), read_checkpoint(two_epochs.latest)
    for key in ("model", "optimizer", "history"):
        assert_same(resumed[key], whole[key])
    assert resumed["classes"] == NUMBERS
    assert read_checkpoint(train(tmp_path, output="new").latest)["classes"] == ["1", "2", "10"]


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (["a", "b", "d"], ["lacks d", "adds c"]),
        (["a", "b"], ["adds c"]),
        (["a", "b", "c", "d"], ["lacks d"]),
        (["b", "a", "c"], ["label 0 is a", "was b"]),
        (["a", "b", "c", "c"], ["lacks c"]),
        (["A", "b", "c"], ["lacks A", "adds a"]),
    ],
)
def test_other_classes_cannot_be_resumed(two_epochs, tmp_path, then, words):
    state = read_checkpoint(two_epochs.latest)
    save_checkpoint(tmp_path / "other.pt", {**state, "classes": then})
    with pytest.raises(CheckpointError) as error:
        train(two_epochs.path.parents[2], "SOLVER.MAX_EPOCHS", 3, resume=str(tmp_path / "other.pt"), output="other")
    assert all(word in str(error.value) for word in [*words, "other.pt", "MODEL.INIT_FROM"]), error.value
    assert "\n" not in str(error.value)


def test_a_run_on_digits_does_not_resume_with_words(tmp_path):
    cfg = load_cfg(None, [*TINY, "SOLVER.TRAIN_BATCH_SIZE", 700, "OUTPUT_DIR", str(tmp_path)])
    folder = run_training(cfg, "digits")
    rename(folder, ["zero", *"123456789"])
    with pytest.raises(CheckpointError, match=r"lacks zero and adds 0"):
        run_training(cfg, "digits", resume=LATEST)


def test_a_loaded_head_keeps_its_order_also_when_resumed(two_epochs, tmp_path):
    """The rows of the head are permuted with the names, so the accuracy is the same."""
    state, order = read_checkpoint(two_epochs.latest), [2, 0, 1]
    for name in ("head.fc.weight", "head.fc.bias"):
        state["model"][name] = state["model"][name][order]
    save_checkpoint(tmp_path / "other.pt", {"model": state["model"], "classes": [LETTERS[label] for label in order]})
    opts = ["MODEL.INIT_FROM", str(tmp_path / "other.pt"), "SOLVER.BASE_LR", 0.0]
    write(tmp_path, LETTERS)
    folder = train(tmp_path, *opts)
    train(tmp_path, *opts, "SOLVER.MAX_EPOCHS", 2, resume=LATEST)
    rows = [json.loads(line) for line in folder.metrics.open()]
    assert [row["val_loss"] for row in rows] == pytest.approx([state["history"][-1]["val_loss"]] * 2, rel=1e-6)
    assert read_checkpoint(folder.latest)["classes"] == ["c", "a", "b"]
    assert "trained to distinguish" not in folder.log.read_text()


def test_a_head_of_imagenet_without_names_keeps_its_order_for_ids():
    names = [wordnet_ids()[label] for label in (7, 999)]
    assert [classes_of_head([], names, 1000).index(name) for name in names] == [7, 999]
    assert classes_of_head([], ["cat", "dog"], 1000) == classes_of_head(None, ["cat", "dog"], 2) == ["cat", "dog"]


def test_more_outputs_than_classes_give_one_warning_with_the_key_and_the_number(tmp_path):
    wide = ["DATASET.NUM_CLASSES", 5]
    folder = train(write(tmp_path, LETTERS), *wide)
    train(tmp_path, *wide, "SOLVER.MAX_EPOCHS", 2, resume=LATEST)
    first, second = re.findall(r".*DATASET.NUM_CLASSES is 5.*3 classes \(a, b, c\).*", folder.log.read_text())
    assert "set DATASET.NUM_CLASSES to 3" in first
    assert "another --output" not in first
    assert "set DATASET.NUM_CLASSES to 3" in second
    assert "another --output" in second
