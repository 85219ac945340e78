"""Invalid training states in a checkpoint that ``--resume`` names are refused before anything is written."""

from __future__ import annotations

import pytest
import torch

from conftest import TINY
from isonet import load_cfg
from isonet.errors import CheckpointError, ConfigError
from isonet.files.checkpoint import read_checkpoint
from isonet.training.run import run_training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = run_training(load_cfg(None, [*TINY, "OUTPUT_DIR", str(tmp_path_factory.mktemp("trained"))]), "run")
    return read_checkpoint(folder.latest)


def with_momentum(make):
    def change(state):
        values = {index: {"momentum_buffer": make(v["momentum_buffer"])} for index, v in state["state"].items()}
        return {**state, "state": values}

    return change


INVALID_STATES = {
    "no optimizer": ("optimizer", lambda _: None),
    "momentum of another shape": ("optimizer", with_momentum(lambda m: m[:1])),
    "momentum expanded": ("optimizer", with_momentum(lambda m: m.expand(2, *m.shape))),
    "momentum NaN": ("optimizer", with_momentum(lambda m: m * float("nan"))),
    "momentum text": ("optimizer", with_momentum(lambda _: "x")),
    "other groups": ("optimizer", lambda s: {**s, "param_groups": s["param_groups"][:1]}),
    "other parameters": ("optimizer", lambda s: {**s, "state": {999: s["state"][0]}}),
    "one momentum None": ("optimizer", lambda s: {**s, "state": {**s["state"], 1: {"momentum_buffer": None}}}),
    "one momentum missing": ("optimizer", lambda s: {**s, "state": {k: v for k, v in s["state"].items() if k != 1}}),
    "momentum of -1": ("optimizer", lambda s: {**s, "state": {**s["state"], -1: s["state"][0]}}),
    "groups of lists": ("optimizer", lambda s: {**s, "param_groups": [[0], [0]]}),
    "epoch text": ("epoch", lambda _: "three"),
    "epoch list": ("epoch", lambda _: [[0], [0]]),
    "history of text": ("history", lambda _: [{"epoch": "x"}]),
    "history of lists": ("history", lambda _: [{"epoch": [0]}]),
    "history no list": ("history", lambda _: 7),
    "best text": ("best_top1", lambda _: "x"),
    "part text": ("part", lambda _: "x"),
    "part of lists": ("part", lambda _: {"taken": [0], "sums": SUMS}),
    "part without sums": ("part", lambda _: {"taken": 5, "sums": {}}),
    "part beyond the epoch": ("part", lambda _: {"taken": 10**9, "sums": SUMS}),
    "part before it": ("part", lambda _: {"taken": -5, "sums": SUMS}),
    "part of NaN": ("part", lambda _: {"taken": 5, "sums": {**SUMS, "losses": [float("nan"), 1.0]}}),
    "part of huge numbers": ("part", lambda _: {"taken": 5, "sums": {**SUMS, "correct": [10**400, 1]}}),
    "part of three losses": ("part", lambda _: {"taken": 5, "sums": {**SUMS, "losses": [1.0] * 3}}),
    "history NaN": ("history", lambda h: [{**h[0], "top1": float("nan")}]),
    "best NaN": ("best_top1", lambda _: float("nan")),
    "epoch negative": ("epoch", lambda _: -5),
    "epoch huge": ("epoch", lambda _: 10**400),
    "config of broken YAML": ("config", lambda _: "ISON: ["),
    "config with an alias": ("config", lambda _: "DATASET:\n  MEAN: &a [0.5, 0.5, 0.5]\n  STD: *a\n"),
    "weights NaN": ("model", lambda w: {name: value * float("nan") for name, value in w.items()}),
}
SUMS = {"losses": [1.0, 1.0], "correct": [1, 1], "images": 5, "steps": 1, "seconds": 1.0, "waited": 0.0}


@pytest.mark.parametrize("what", INVALID_STATES)
def test_an_invalid_training_state_is_refused_before_anything_is_written(trained, tmp_path, tally, what):
    key, change = INVALID_STATES[what]
    torch.save({**trained, key: change(trained[key])}, tmp_path / "c.pt")
    config = load_cfg(None, [*TINY, "SOLVER.MAX_EPOCHS", 2, "OUTPUT_DIR", str(tmp_path / "out")])
    with pytest.raises((CheckpointError, ConfigError)) as error:
        run_training(config, "run", resume=str(tmp_path / "c.pt"))
    assert "c.pt" in str(error.value)
    assert len(str(error.value)) < 700
    assert not (tmp_path / "out").exists()
    tally("refused")


@pytest.mark.parametrize("form", ["published", "safetensors"])
def test_a_file_that_has_only_weights_starts_a_run_and_resumes_none(trained, tmp_path, tally, form):
    path = tmp_path / f"c.{form}"
    if form == "published":
        torch.save({"net": {f"module.{name}": value for name, value in trained["model"].items()}, "epoch": 9}, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(trained["model"], path)
    config = ["SOLVER.MAX_EPOCHS", 1, "SOLVER.BASE_LR", 0.0, "OUTPUT_DIR", str(tmp_path / "out")]
    with pytest.raises(CheckpointError, match=rf"{path.name}.*MODEL\.INIT_FROM {path}"):
        run_training(load_cfg(None, [*TINY, *config]), "run", resume=str(path))
    assert not (tmp_path / "out").exists()
    tally("refused")
    if form == "published":
        return
    folder = run_training(load_cfg(None, [*TINY, *config, "MODEL.INIT_FROM", str(path)]), "run")
    for name, value in read_checkpoint(folder.latest)["model"].items():
        assert torch.equal(value, trained["model"][name]), name


def test_invalid_counts_are_not_compared_with_the_run(trained, tmp_path):
    torch.save({**trained, "num_devices": torch.ones(3), "num_images": "x"}, tmp_path / "c.pt")
    config = load_cfg(None, [*TINY, "SOLVER.MAX_EPOCHS", 1, "OUTPUT_DIR", str(tmp_path / "out")])
    assert run_training(config, "run", resume=str(tmp_path / "c.pt")).latest.exists()


@pytest.mark.parametrize("change", [{}, {"scale": "x"}, {"scale": 0.0}, {"_growth_tracker": "x"}], ids=str)
def test_an_invalid_scale_of_fp16_is_refused(trained, tmp_path, tally, change):
    """The valid scale is accepted. The run is finished, so that nothing is computed in 16 bits."""
    scaler = torch.amp.GradScaler("cpu").state_dict()
    torch.save({**trained, "scaler": {**scaler, **change}}, tmp_path / "c.pt")
    config = load_cfg(None, [*TINY, "RUNTIME.AMP", "fp16", "OUTPUT_DIR", str(tmp_path / "out")])
    if not change:
        assert run_training(config, "run", resume=str(tmp_path / "c.pt")).latest.exists()
        return
    with pytest.raises(CheckpointError, match=r"c\.pt: .*fit this run"):
        run_training(config, "run", resume=str(tmp_path / "c.pt"))
    assert not (tmp_path / "out").exists()
    tally("refused")
