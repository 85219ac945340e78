"""Curves of runs: what is drawn and written down while a run trains, and the tool that compares runs."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import TINY, run_script
from isonet import load_cfg
from isonet.errors import UserError
from isonet.plots import COLOURS, look, short
from isonet.tools import curves
from isonet.tools.summary import read_rows
from isonet.training.resume import LATEST
from isonet.training.run import run_training

QUICK = [*TINY[:-1], 2, "SOLVER.TEST_BATCH_SIZE", 360]


def cfg(tmp_path, *opts):
    return load_cfg(None, [*QUICK, *opts, "OUTPUT_DIR", str(tmp_path)])


def pixels(data, size):
    """The colours of a picture, such as #0072b2."""
    with Image.open(data) as image:
        assert image.size == size
        return {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in image.convert("RGB").getcolors(1 << 24)}


def test_a_run_draws_its_curves_and_writes_events_once_for_each_epoch(tmp_path):
    folder = run_training(cfg(tmp_path, "RUNTIME.TENSORBOARD", True), "run")
    assert {COLOURS[0], COLOURS[1], COLOURS[2]} <= pixels(folder.curves, (1350, 900))
    two_epochs = folder.curves.read_bytes()
    run_training(cfg(tmp_path, "RUNTIME.TENSORBOARD", True, "SOLVER.MAX_EPOCHS", 3), "run", resume=LATEST)
    assert folder.curves.read_bytes() != two_epochs
    rows = [json.loads(line) for line in folder.metrics.open()]
    events = EventAccumulator(str(folder.path)).Reload()
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"epoch"}
    for key in events.Tags()["scalars"]:
        points = [(event.step, event.value) for event in events.Scalars(key)]
        assert points == [(row["epoch"], pytest.approx(row[key], rel=1e-6)) for row in rows], key
    copy = run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 3), "copy", resume=str(folder.path))  # nothing to do
    assert copy.curves.exists()
    assert not copy.events()
    copy.clear()
    folder.clear()
    assert not list(copy.path.iterdir()) + list(folder.path.iterdir())


def test_without_matplotlib_a_run_says_so_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # so that importing it fails
    folder = run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 1), "run")
    assert folder.log.read_text().count("curves.png is not drawn: matplotlib is not installed (pip install ") == 1
    assert not folder.curves.exists()
    with pytest.raises(UserError, match=r"a\.png is not drawn: matplotlib is not installed"):
        curves.main(curves.parse_args([str(folder.path), "--output", "a.png"]))


def test_without_tensorboard_a_run_that_asks_for_it_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"RUNTIME\.TENSORBOARD True needs the package tensorboard: pip install"):
        run_training(cfg(tmp_path, "RUNTIME.TENSORBOARD", True), "run")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_costs_one_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("isonet.training.report.SECONDS_BETWEEN", 0.0)
    folder = run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 1), "run")
    folder.curves.unlink()
    folder.curves.mkdir()
    run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 3), "run", resume=LATEST)
    text = folder.log.read_text()
    assert text.count("curves or events of this run are not written any more") == 1
    assert "curves.png: cannot be written (Is a directory)" in text
    assert len(folder.metrics.read_text().splitlines()) == 3
    assert not list(folder.path.glob(".*"))


def make_run(folder, epochs, top1, tail=""):
    """The files of a run with the accuracies ``top1(epoch)``."""
    folder.mkdir(parents=True)
    keys = {"learning_rate": 0.1, "cross_entropy": 1.25, "penalty": 3.5, "train_top1": 50.0, "top5": 90.0,
            "train_top5": 91.0, "val_loss": 1.5}  # fmt: skip
    rows = [{"epoch": epoch, **keys, "top1": top1(epoch)} for epoch in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    timing = [{"epoch": row["epoch"], "images_per_second": 100.0 * row["epoch"], "seconds": 7.0} for row in rows]
    (folder / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timing))


def test_the_tool_as_a_user_runs_it(tmp_path):
    make_run(tmp_path / "outputs/cls/digits/first", 5, lambda epoch: 60 + epoch * (4 - epoch), tail='{"epoch": 6, "to')
    make_run(tmp_path / "_elsewhere$", 1, lambda epoch: 9.5)
    result = run_script("isonet/tools/curves.py", "first", "_elsewhere$", "--output", "all.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    damaged, header, first, second, drawn = result.stdout.splitlines()
    assert damaged.endswith("first/metrics.jsonl: 1 damaged or half-written lines are left out")
    assert header.split("  ")[0] == "run"
    for column in ("epochs", "best top-1 (epoch)", "last top-1", "cross entropy", "penalty", "images/s", "seconds"):
        assert f"  {column}" in header
    assert first.split() == ["first", "5", "64.00", "(2)", "55.00", "1.2500", "3.5", "300", "35"]
    assert second.split() == ["_elsewhere$", "1", "9.50", "(1)", "9.50", "1.2500", "3.5", "100", "7"]
    assert drawn == "drawn in all.png"
    assert {COLOURS[0], COLOURS[1]} <= pixels(tmp_path / "all.png", (1600, 1000))


def test_beyond_seven_runs_colours_come_again_with_another_marker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"r{i}" for i in range(8)]
    for i, name in enumerate(names):
        make_run(tmp_path / name, 1 + i, lambda epoch, i=i: 10.0 * i + epoch)
    curves.main(curves.parse_args([*names, "--key", "top1"]))
    assert set(COLOURS) <= pixels(tmp_path / "runs.png", (1600, 1000))
    looks = [tuple(look(i).values()) for i in range(42)]
    assert len(set(looks)) == 42


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["nothing"], "no run nothing: neither there nor below outputs is a folder of this name with a metrics.jsonl"),
        (["twin"], "twin is the name of 2 runs: outputs/a/twin and outputs/b/twin"),
        (["a/twin", "outputs/a/twin"], "a/twin is named twice"),
        (["empty"], "empty/metrics.jsonl: holds no epoch yet"),
        (["a/twin", "--output", "no/such.png"], "no/such.png: cannot be written"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, runs, message):
    monkeypatch.chdir(tmp_path)
    for name in ("outputs/a/twin", "outputs/b/twin", "empty"):
        make_run(tmp_path / name, 0 if name == "empty" else 1, lambda epoch: 1.0)
    with pytest.raises(UserError) as error:
        curves.main(curves.parse_args([*runs, "--output-dir", "outputs"]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "7", '"epoch"', "{}", '{"epoch": 0}', '{"epoch": 1.5}', '{"epoch": true}', '{"epoch": "2"}',
     '{"epoch": 2, "top1": NaN}', '{"epoch": 2, "top1": 1e999}', "[" * 100_000, "\x00\xff"],
)  # fmt: skip
def test_a_line_that_is_no_row_is_counted_and_left_out(tmp_path, line):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"epoch": 1, "top1": 3}\n' + line + '\n{"epoch": 3}\n{"epoch": 1, "top1": 4}\n')
    assert read_rows(file) == ([{"epoch": 1.0, "top1": 4.0}, {"epoch": 3.0}], 1)


@pytest.mark.parametrize(
    ("number", "text"),
    [(1e-4, "1e-4"), (1e-5, "1e-5"), (0.02, "0.02"), (1.5e-7, "1.5e-7"), (1e6, "1e6"), (0, "0"), (-0.001, "-1e-3"),
     (3, "3"), (0.1 + 0.2, "0.30000000000000004"), (1e22, "1e22")],
)  # fmt: skip
def test_the_shortest_text_of_a_number(number, text):
    assert short(number) == text
    assert float(text) == number
