"""The CIFAR-10 study: results/ matches its commands and configs, and RESULTS.md matches results/."""

from __future__ import annotations

import json
import math
import re
import shlex
import tarfile

import pytest

from benchmarks.study import __main__ as study
from benchmarks.study import sections, stored, tables, very_deep
from benchmarks.study.rows import CONFIGS, Run
from conftest import REPO, SHARED_DATA
from isonet.config import flat, load_cfg, parse_cfg
from isonet.errors import NonFiniteError, UserError
from isonet.files.run_folder import run_folder
from isonet.training.run import run_training
from train import parse_args

STORED = [run for row in sections.ROWS for run in row.runs() if stored.read(run.name)]


def test_every_table_of_the_page_matches_the_results():
    page = (REPO / "RESULTS.md").read_text(encoding="utf-8")
    assert tables.filled(page) == page, "update the page with python -m benchmarks.study tables"
    assert all(f"<!-- table {name} -->" in page for name in tables.TABLES)


def test_an_unknown_marker_is_an_error():
    with pytest.raises(UserError, match="depth21"):
        tables.filled("<!-- table depth20 -->\n<!-- end -->\n<!-- table depth21 -->\n<!-- end -->\n")


@pytest.mark.parametrize("run", STORED, ids=lambda run: run.name)
def test_a_stored_run_matches_its_command_and_config(run):
    """Fails if a config or a default changes without training its rows again."""
    found = stored.read(run.name)
    assert found.command == run.command
    words = shlex.split(found.command)
    assert words[:2] == ["python", "train.py"]
    args = parse_args(words[2:])
    cfg = load_cfg(REPO / args.cfg, args.opts)
    then, now = flat(parse_cfg(found.config, run.name)), flat(cfg)
    assert then.keys() == now.keys()
    assert {key for key in now if then[key] != now[key]} <= stored.WITHOUT_EFFECT
    epochs = len(found.metrics) if found.diverged else cfg.SOLVER.MAX_EPOCHS
    assert [row["epoch"] for row in found.metrics] == list(range(1, epochs + 1))


def test_the_learning_rate_of_a_row_is_the_best_one_that_ran():
    """Otherwise the tables would show a network below its best."""
    for row in sections.ROWS:
        found = {run.rate: stored.read(run.name) for run in row.searched()}
        top1 = {rate: run.top1 for rate, run in found.items() if run and not run.diverged}
        assert not top1 or row.rate == max(top1, key=top1.__getitem__), (row.config, top1)


def test_every_result_and_every_config_has_a_row():
    rows = {row.config for row in sections.ROWS}
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == rows | {"ISO1202"}
    runs = {run.name for row in sections.ROWS for run in row.runs()}
    assert {file.stem for file in stored.RESULTS.glob("*-lr*.json")} <= runs


def test_a_stored_run_is_read_back_unchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    rows = [{"epoch": 1, "top1": 10.5}, {"epoch": 2, "top1": 9.0}]
    run = stored.Stored("python train.py", "A: 1\n", {"torch": "2"}, rows, rows)
    assert json.loads(stored.write("x", run).read_text())["metrics"] == rows
    assert stored.read("x") == run
    assert run.top1 == 9.0
    assert stored.read("y") is None


def test_a_diverged_run_is_stored_with_its_reason(tmp_path, monkeypatch):
    """The run really diverges; other errors in a log do not count as divergence."""
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    opts = ["OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.BASE_LR", 1e5, "SOLVER.WARMUP", False]
    cfg = load_cfg(REPO / "configs" / "digits_ISO20.yaml", opts)
    with pytest.raises(NonFiniteError):
        run_training(cfg, "x")
    run = stored.collect("python train.py", run_folder(cfg, "x"))
    assert "epoch 1" in run.diverged
    stored.write("x", run)
    assert stored.read("x") == run
    assert math.isnan(run.top1)
    (tmp_path / "log.txt").write_text("2026-01-01 00:00:00 StorageError: the disk is full; see OUTPUT_DIR\n")
    assert not stored.divergence(tmp_path / "log.txt")


def test_a_run_is_not_resumed_with_another_config(tmp_path, monkeypatch):
    """Otherwise the metrics of the former config would be stored with the new one."""
    run = sections.RES20.repeated()[0]
    folder = run_folder(load_cfg(CONFIGS / "RES20.yaml", ["OUTPUT_DIR", str(tmp_path)]), run.name)
    monkeypatch.setattr(type(run), "folder", lambda _: folder)
    study.refuse_another_config(run)  # there is no folder yet
    folder.path.mkdir(parents=True)
    folder.config.write_text(run.cfg().dump())
    study.refuse_another_config(run)
    folder.config.write_text(load_cfg(CONFIGS / "RES20.yaml", [*run.opts, "SOLVER.MOMENTUM", 0.5]).dump())
    with pytest.raises(UserError, match=rf"{re.escape(run.name)}.*SOLVER\.MOMENTUM"):
        study.refuse_another_config(run)


def test_runs_are_sorted_by_rows_then_rates_then_seeds():
    rows = [sections.RES20, sections.ISO20]
    others = [Run(row.config, rate, 0) for row in rows for rate in row.rates if rate != row.rate]
    assert len(others) == sum(len(row.rates) - 1 for row in rows)  # the rate of each row is one of them
    assert study.in_order(rows) == [
        *(Run(row.config, row.rate, 0) for row in rows),
        *others,
        *(Run("RES20", sections.RES20.rate, seed) for seed in (1, 2)),
    ]


def test_a_zero_or_missing_norm_has_an_infinite_spread():
    assert very_deep.spread([2.0, 0.5, 1.0]) == 4
    assert math.isinf(very_deep.spread([2.0, 0.0, 1.0]))
    assert math.isinf(very_deep.spread([2.0, None, 1.0]))


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs the images in ../shared/data")
def test_a_short_run_learns_real_images(tmp_path):
    """Three epochs of 2,000 images of 16 pixels reach about 30 %; a network that does not learn has 10 %."""
    sizes = {"train": 200, "val": 50}  # images per class
    with tarfile.open(SHARED_DATA / "cifar10-jpg.tar.xz") as archive:
        for member in archive:
            if member.isfile():
                _, split, _, name = member.name.split("/")
                if int(name.removesuffix(".jpg")) < sizes[split]:
                    archive.extract(member, tmp_path, filter="data")
    # float32, because a CPU without AVX-512 takes seven minutes for this in bfloat16
    opts = ["DATASET.ROOT", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "out"), "RUNTIME.COMPILE", False,
            "RUNTIME.AMP", "off", "DATASET.IMAGE_SIZE", 16,
            "SOLVER.TRAIN_BATCH_SIZE", 50, "SOLVER.BASE_LR", 0.05, "SOLVER.MAX_EPOCHS", 3]  # fmt: skip
    folder = run_training(load_cfg(CONFIGS / "RISO20-orthogonal.yaml", opts), "short")
    rows = [json.loads(line) for line in folder.metrics.open()]
    assert max(row["top1"] for row in rows) > 22
    assert rows[-1]["cross_entropy"] < 2.05  # log(10) is 2.30
