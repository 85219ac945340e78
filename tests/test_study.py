"""The CIFAR-10 study: what results/ holds is what its commands make, and what RESULTS.md says."""

from __future__ import annotations

import json
import math
import shlex
import tarfile

import pytest

from benchmarks.study import sections, stored, tables
from benchmarks.study.rows import CONFIGS
from conftest import REPO, SHARED_DATA
from isonet.config import flat, load_cfg, parse_cfg
from isonet.errors import NonFiniteError
from isonet.run_folder import run_folder
from isonet.training.run import run_training
from train import parse_args

STORED = [run for row in sections.ROWS for run in row.runs() if stored.read(run.name)]


def test_every_table_is_the_one_that_the_results_give():
    page = (REPO / "RESULTS.md").read_text(encoding="utf-8")
    assert tables.filled(page) == page, "python -m benchmarks.study tables writes them anew"
    assert all(f"<!-- table {name} -->" in page for name in tables.TABLES)


@pytest.mark.parametrize("run", STORED, ids=lambda run: run.name)
def test_a_stored_run_is_what_its_command_makes(run):
    """Whoever changes a config, or a default, has to train its rows again."""
    found = stored.read(run.name)
    words = shlex.split(found.command)
    assert words[:2] == ["python", "train.py"]
    args = parse_args(words[2:])
    cfg = load_cfg(REPO / args.cfg, args.opts)
    assert flat(parse_cfg(found.config, run.name)) == flat(cfg)
    epochs = len(found.metrics) if found.diverged else cfg.SOLVER.MAX_EPOCHS
    assert [row["epoch"] for row in found.metrics] == list(range(1, epochs + 1))


def test_no_result_and_no_config_is_without_a_row():
    rows = {row.config for row in sections.ROWS}
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == rows | {"ISO1202"}
    runs = {run.name for row in sections.ROWS for run in row.runs()}
    assert {file.stem for file in stored.RESULTS.glob("*-lr*.json")} <= runs


def test_a_run_survives_being_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    rows = [{"epoch": 1, "top1": 10.5}, {"epoch": 2, "top1": 9.0}]
    run = stored.Stored("python train.py", "A: 1\n", {"torch": "2"}, rows, rows)
    assert json.loads(stored.write("x", run).read_text())["metrics"] == rows
    assert stored.read("x") == run
    assert run.top1 == 9.0
    assert stored.read("y") is None


def test_a_run_that_diverges_is_stored_as_such(tmp_path, monkeypatch):
    """One that really does; the trainer's error is what tells it from a run that failed for another reason."""
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    opts = ["OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.BASE_LR", 1e5, "SOLVER.WARMUP", False]
    cfg = load_cfg(REPO / "configs" / "digits_ISO20.yaml", opts)
    with pytest.raises(NonFiniteError):
        run_training(cfg, "x")
    run = stored.collect("python train.py", run_folder(cfg, "x"))
    assert "is not finite in epoch 1" in run.diverged
    stored.write("x", run)
    assert stored.read("x") == run
    assert math.isnan(run.top1)
    (tmp_path / "log.txt").write_text("2026-01-01 00:00:00 StorageError: the disk is full; see OUTPUT_DIR\n")
    assert not stored.divergence(tmp_path / "log.txt")


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the images in ../shared/data are not here")
def test_a_short_run_of_a_row_learns_real_images(tmp_path):
    """2,000 images, three times: about 30 %, where a network that does not learn has 10."""
    sizes = {"train": 200, "val": 50}  # images of each class
    with tarfile.open(SHARED_DATA / "cifar10-jpg.tar.xz") as archive:
        for member in archive:
            if member.isfile():
                _, split, _, name = member.name.split("/")
                if int(name.removesuffix(".jpg")) < sizes[split]:
                    archive.extract(member, tmp_path, filter="data")
    opts = ["DATASET.ROOT", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "out"), "RUNTIME.COMPILE", False,
            "SOLVER.TRAIN_BATCH_SIZE", 50, "SOLVER.BASE_LR", 0.05, "SOLVER.MAX_EPOCHS", 3]  # fmt: skip
    folder = run_training(load_cfg(CONFIGS / "RISO20-orthogonal.yaml", opts), "short")
    rows = [json.loads(line) for line in folder.metrics.open()]
    assert max(row["top1"] for row in rows) > 22
    assert rows[-1]["cross_entropy"] < 2.05  # log(10) is 2.30
