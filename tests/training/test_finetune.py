"""A run that starts with the weights of another run and freezes parts of them: five digits after all ten digits."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from PIL import Image

from conftest import REPO, TINY, assert_same
from isonet import build_model, load_cfg, ortho_penalty_per_conv
from isonet.data.sources import digits
from isonet.errors import CheckpointError, ConfigError
from isonet.files.checkpoint import read_checkpoint, save_checkpoint
from isonet.files.run_folder import LATEST
from isonet.training import build_optimizer
from isonet.training.finetune import classes_of_head, freeze
from isonet.training.run import run_training

pytestmark = pytest.mark.usefixtures("no_pictures")

FROZEN = ("stem.", "s1.")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The digits 0 to 4 as an image folder, with 12 images of each for training."""
    root = tmp_path_factory.mktemp("data")
    for split, most in (("train", 12), ("val", 1000)):
        source, count = digits(split), dict.fromkeys(range(5), 0)
        for index, label in enumerate(source.labels):
            if count.get(label, most) < most:
                count[label] += 1
                folder = root / "few" / split / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(source.images[index]).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run on all ten digits."""
    opts = ["SOLVER.MAX_EPOCHS", 5, "SOLVER.BASE_LR", 0.02, "SOLVER.TRAIN_BATCH_SIZE", 32]
    return run_training(load_cfg(None, [*TINY, *opts, "OUTPUT_DIR", str(tmp_path_factory.mktemp("base"))]), "base")


@pytest.fixture
def few(data, tmp_path):
    """Return a function that makes configs for the five digits."""

    def config(*opts):
        return load_cfg(None, [
            "DATASET.ROOT", str(data), "DATASET.NAME", "few", "DATASET.NUM_CLASSES", 5, "DATASET.IMAGE_SIZE", 8,
            "ISON.DEPTH", 8, "SOLVER.TRAIN_BATCH_SIZE", 20, "SOLVER.MAX_EPOCHS", 8, "SOLVER.BASE_LR", 0.01,
            "SOLVER.WEIGHT_DECAY", 0.1, "OUTPUT_DIR", str(tmp_path / "runs"), *opts,
        ])  # fmt: skip

    return config


def weights(file):
    return read_checkpoint(file)["model"]


def rows(folder):
    return [json.loads(line) for line in folder.metrics.open()]


def test_fine_tuning_beats_training_on_few_images_and_keeps_what_is_frozen(few, base):
    scratch = run_training(few(), "scratch")
    tuned = run_training(few("MODEL.INIT_FROM", str(base.path), "MODEL.FREEZE", "stem,s1"), "tuned")
    assert rows(tuned)[-1]["top1"] > rows(scratch)[-1]["top1"] + 15  # percent, of 180 images

    before, after = weights(base.best), weights(tuned.latest)
    for name, value in after.items():
        frozen = name.startswith(FROZEN)
        if not name.startswith("head."):
            assert torch.equal(value, before[name]) == frozen, name
    assert after["head.fc.weight"].shape == (5, 64)

    assert dict(load_cfg(tuned.config).MODEL) == {"INIT_FROM": str(base.path), "FREEZE": ["stem", "s1"]}
    log = tuned.log.read_text()
    assert f"14 of 16 tensors are those of {base.best}" in log
    assert "fresh: head.fc.weight, (10, 64) there and (5, 64) here" in log
    assert "fresh: head.fc.bias, (10,) there and (5,) here" in log
    assert re.search(r"MODEL.FREEZE: stem, s1 .* 69637 of 74725 parameters", log)


def test_a_run_starts_from_the_checkpoint_with_a_new_head_or_the_checkpoints(few, base):
    still = ["MODEL.INIT_FROM", str(base.best), "SOLVER.BASE_LR", 0.0, "SOLVER.MAX_EPOCHS", 1]
    found = weights(run_training(few(*still), "five").latest)
    torch.manual_seed(0)
    expected = {**weights(base.best), **{f"head.{k}": v for k, v in build_model(few()).head.state_dict().items()}}
    assert_same(dict(found), {name: expected[name] for name in found})
    ten = run_training(few(*still, "DATASET.NUM_CLASSES", 10), "ten")
    assert_same(dict(weights(ten.latest)), dict(weights(base.best)))
    assert "16 of 16 tensors" in ten.log.read_text()
    assert "the head was trained to distinguish 0, 1, 2, 3, 4, ..." in ten.log.read_text()


def test_the_penalty_counts_what_is_trained(few, base):
    """No weight changes, so the penalty equals the checkpoint's."""
    opts = ["MODEL.INIT_FROM", str(base.best), "SOLVER.BASE_LR", 0.0, "SOLVER.MAX_EPOCHS", 1]
    model = build_model(few())
    loaded = {k: v for k, v in weights(base.best).items() if not k.startswith("head.")}
    model.load_state_dict(loaded, strict=False)
    terms = {name: term.item() for name, term in ortho_penalty_per_conv(model).items()}
    for output, frozen in (("all", []), ("frozen", ["s1", "s3"])):
        folder = run_training(few(*opts, "MODEL.FREEZE", frozen), output)
        expected = sum(term for name, term in terms.items() if name[:2] not in frozen)
        assert rows(folder)[0]["penalty"] == pytest.approx(expected, rel=1e-5)
    everything = run_training(few(*opts, "MODEL.FREEZE", "stem,s1,s2,s3"), "head")
    assert rows(everything)[0]["penalty"] == 0


def test_batch_norm_of_frozen_parts_learns_nothing(few, tmp_path):
    opts = ["ISON.HAS_BN", True, "ISON.HAS_ST", True, "SOLVER.MAX_EPOCHS", 2]
    model = build_model(few(*opts))
    for number, value in enumerate(model.state_dict().values()):
        if value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(number))
    save_checkpoint(tmp_path / "norms.pt", {"model": model.state_dict()})
    frozen = ["MODEL.INIT_FROM", str(tmp_path / "norms.pt"), "MODEL.FREEZE", "stem, s1"]
    after = weights(run_training(few(*opts, *frozen), "norms").latest)
    for name, value in model.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(value, after[name]) == name.startswith(FROZEN), name


def test_no_group_of_the_optimiser_contains_a_frozen_parameter(few):
    cfg = few("MODEL.FREEZE", "[stem, s2]", "ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True)
    model = build_model(cfg)
    freeze(model, cfg)
    held = {id(p) for group in build_optimizer(model, cfg).param_groups for p in group["params"]}
    assert held == {id(p) for name, p in model.named_parameters() if not name.startswith(("stem.", "s2."))}


def test_a_resumed_run_does_not_load_the_initial_weights_again(few, base, tmp_path):
    """A resumed run does not need MODEL.INIT_FROM's checkpoint, and is bit-identical to an uninterrupted run."""
    source = tmp_path / "source.pt"
    shutil.copy(base.best, source)
    opts = ["MODEL.INIT_FROM", str(source), "MODEL.FREEZE", "stem"]
    whole = run_training(few(*opts, "SOLVER.MAX_EPOCHS", 3), "whole")
    run_training(few(*opts, "SOLVER.MAX_EPOCHS", 2), "part")
    source.unlink()
    part = run_training(few(*opts, "SOLVER.MAX_EPOCHS", 3), "part", resume=LATEST)
    for key in ("model", "optimizer", "history"):
        assert_same(read_checkpoint(part.latest)[key], read_checkpoint(whole.latest)[key])

    with pytest.raises(ConfigError, match=r"MODEL.FREEZE \['stem'\].*\['s1'\].*MODEL.INIT_FROM"):
        run_training(few("MODEL.FREEZE", "s1", "SOLVER.MAX_EPOCHS", 4), "part", resume=LATEST)
    run_training(few("MODEL.FREEZE", "stem", "SOLVER.MAX_EPOCHS", 4), "part", resume=LATEST)
    assert f"another value of MODEL.INIT_FROM {source} -> " in part.log.read_text()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.INIT_FROM", "nothing"], "^MODEL.INIT_FROM: no checkpoint nothing"),
        (["MODEL.INIT_FROM", "BASE", "ISON.DEPTH", 14], "another network .*missing: s1.b2"),
        (["MODEL.INIT_FROM", "BASE", "ISON.SReLU", False], "another network than the config"),
        (["MODEL.INIT_FROM", "BASE", "ISON.TRANS_FUN", "bottleneck_transform", "ISON.DEPTH", 11], "another network"),
        (["MODEL.FREEZE", "s4"], "^MODEL.FREEZE s4: the parts of this network are stem, s1, s2, s3, head"),
        (["MODEL.FREEZE", "stem,s1,s2,s3,head"], "leaves nothing to train"),
    ],
)
def test_incompatible_settings_give_one_sentence(few, base, opts, message):
    opts = [str(base.best) if opt == "BASE" else opt for opt in opts]
    with pytest.raises((CheckpointError, ConfigError), match=message) as error:
        run_training(few(*opts), "never")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["stem,s1", "stem, s1", "[stem, s1]", "['stem', \"s1\"]", "(stem,s1,)", ["stem", "s1"], ("stem", "s1")]
)
def test_spellings_of_a_list_of_names(text):
    assert load_cfg(None, ["MODEL.FREEZE", text]).MODEL.FREEZE == ["stem", "s1"]


def test_lists_of_one_name_of_no_name_and_from_a_file(tmp_path):
    assert load_cfg(None, ["MODEL.FREEZE", "head"]).MODEL.FREEZE == ["head"]
    assert load_cfg(None, ["MODEL.FREEZE", "[]"]).MODEL.FREEZE == []
    (tmp_path / "a.yaml").write_text("MODEL:\n  FREEZE: [stem, s1]\n  INIT_FROM: some/run\n")
    cfg = load_cfg(tmp_path / "a.yaml")
    assert (cfg.MODEL.FREEZE, cfg.MODEL.INIT_FROM) == (["stem", "s1"], "some/run")
    (tmp_path / "b.yaml").write_text(cfg.dump())
    assert load_cfg(tmp_path / "b.yaml") == cfg


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("stm", "has a value that must be one of stem, s1, s2, s3, s4, head, got"),
        ("stem,,s1", "has a value that must be one of"),
        ([1], r"takes names such as \[a, b\]"),
        (3, r"takes names such as \[a, b\]"),
    ],
)
def test_wrong_names(value, message):
    with pytest.raises(ConfigError, match=f"^the command line: MODEL.FREEZE {message}"):
        load_cfg(None, ["MODEL.FREEZE", value])


def test_the_same_classes_are_not_reported(caplog):
    assert classes_of_head(["b", "a"], ("a", "b"), 2) == ["b", "a"]
    assert classes_of_head(None, ["a"], 1) == ["a"]
    assert not caplog.records


def tune(_rank, config):
    try:
        return run_training(config, "shared").latest
    except (CheckpointError, SystemExit) as error:  # only one rank reports an error that all ranks have
        return str(error)


def test_two_processes_start_alike_and_fail_alike(few, base, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPO / "tests" / "processes")
    from launch import forked

    opts = ["MODEL.FREEZE", "stem", "SOLVER.MAX_EPOCHS", 1, "MODEL.INIT_FROM"]
    half = ["SOLVER.TRAIN_BATCH_SIZE", 10, "SOLVER.BASE_LR", 0.005]  # per process; with two processes, the same step
    alone = weights(run_training(few(*opts, str(base.path)), "alone").latest)
    shared = weights(forked(2, tune, tmp_path, few(*half, *opts, str(base.path)))[0])
    for name, value in shared.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-6)
        if name.startswith("stem."):
            assert torch.equal(value, weights(base.best)[name])
    failed = forked(2, tune, tmp_path, few(*half, *opts, str(tmp_path / "gone.pt"), "OUTPUT_DIR", str(tmp_path / "no")))
    assert "no checkpoint" in failed[0]
    assert len(failed) == 2
