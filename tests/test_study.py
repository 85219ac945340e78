"""The CIFAR-10 study: what results/ holds is what its commands make, and what RESULTS.md says."""

from __future__ import annotations

import json
import shlex

import pytest

from benchmarks.study import sections, stored, tables
from benchmarks.study.rows import CONFIGS
from conftest import REPO
from isonet.config import flat, load_cfg, parse_cfg
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
    assert [row["epoch"] for row in found.metrics] == list(range(1, cfg.SOLVER.MAX_EPOCHS + 1))


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
