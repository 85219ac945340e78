"""Curves of runs: the picture and the events that a run writes, and the tool that compares runs."""

from __future__ import annotations

import json
import math
import sys

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import TINY
from isonet import load_cfg
from isonet.errors import UserError
from isonet.files.run_folder import LATEST
from isonet.plots import COLOURS, as_png, look, short
from isonet.plots.accuracy import standard_error
from isonet.plots.runs import draw_runs
from isonet.tools import curves
from isonet.tools.summary import read_rows, summary_of
from isonet.training.run import run_training

QUICK = [*TINY[:-1], 2, "SOLVER.TEST_BATCH_SIZE", 360]


def cfg(tmp_path, *opts):
    return load_cfg(None, [*QUICK, *opts, "OUTPUT_DIR", str(tmp_path)])


def pixels(data, size):
    """Return the colours of a picture, such as #0072b2."""
    with Image.open(data) as image:
        assert image.size == size
        return {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in image.convert("RGB").getcolors(1 << 24)}


def test_a_run_draws_its_curves_and_writes_events_once_for_each_epoch(tmp_path):
    folder = run_training(cfg(tmp_path, "RUNTIME.TENSORBOARD", True), "run")
    assert summary_of(folder).validation_images == 360
    assert COLOURS[0] in pixels(folder.curves, (1600, 1000))
    two_epochs = folder.curves.read_bytes()
    run_training(cfg(tmp_path, "RUNTIME.TENSORBOARD", True, "SOLVER.MAX_EPOCHS", 3), "run", resume=LATEST)
    assert folder.curves.read_bytes() != two_epochs
    rows = [json.loads(line) for line in folder.metrics.open()]
    events = EventAccumulator(str(folder.path)).Reload()
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"epoch"}
    for key in events.Tags()["scalars"]:
        points = [(event.step, event.value) for event in events.Scalars(key)]
        assert points == [(row["epoch"], pytest.approx(row[key], rel=1e-6)) for row in rows], key
    copy = run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 3), "copy", resume=str(folder.path))  # no epochs remain
    assert copy.curves.exists()
    assert not copy.events()
    copy.clear()
    folder.clear()
    assert not list(copy.path.iterdir()) + list(folder.path.iterdir())


def test_without_matplotlib_a_run_logs_it_once_and_trains(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # so that its import fails
    folder = run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 1), "run")
    (line,) = (line for line in folder.log.read_text().splitlines() if "pip install" in line)
    assert "curves.png" in line
    assert "matplotlib" in line
    assert not folder.curves.exists()
    with pytest.raises(UserError, match=r"a\.png.*matplotlib"):
        curves.main(curves.parse_args([str(folder.path), "--output", "a.png"]))


def test_without_tensorboard_a_run_that_asks_for_it_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"RUNTIME\.TENSORBOARD.*pip install"):
        run_training(cfg(tmp_path, "RUNTIME.TENSORBOARD", True), "run")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_gives_one_warning(tmp_path):
    folder = run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 1), "run")
    folder.curves.unlink()
    folder.curves.mkdir()
    run_training(cfg(tmp_path, "SOLVER.MAX_EPOCHS", 3), "run", resume=LATEST)  # drawn after epochs 2 and 3
    (line,) = (line for line in folder.log.read_text().splitlines() if "is a folder" in line)
    assert "warning" in line
    assert "curves.png" in line
    assert len(folder.metrics.read_text().splitlines()) == 3
    assert not list(folder.path.glob(".*"))


def make_run(folder, epochs, top1, tail=""):
    """Write the files of a run with the accuracies ``top1(epoch)``."""
    folder.mkdir(parents=True)
    keys = {"learning_rate": 0.1, "cross_entropy": 1.25, "penalty": 3.5, "train_top1": 50.0, "top5": 90.0,
            "train_top5": 91.0, "val_loss": 1.5}  # fmt: skip
    rows = [{"epoch": epoch, **keys, "top1": top1(epoch)} for epoch in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    timing = [{"epoch": row["epoch"], "images_per_second": 100.0 * row["epoch"], "seconds": 7.0} for row in rows]
    (folder / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timing))


def compare(*arguments):
    curves.main(curves.parse_args([str(argument) for argument in arguments]))


def test_the_tool_prints_a_table_and_draws_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "outputs/cls/digits/first", 5, lambda epoch: 60 + epoch * (4 - epoch), tail='{"epoch": 6, "to')
    make_run(tmp_path / "_elsewhere$", 1, lambda epoch: 9.5)
    compare("first", "_elsewhere$", "--output", "all.png")
    invalid, header, first, second, drawn = capsys.readouterr().out.splitlines()
    assert "first/metrics.jsonl: 1 " in invalid
    assert header.split("  ")[0] == "run"
    for column in ("epochs", "best top-1 (epoch)", "last top-1", "cross entropy", "penalty", "images/s", "seconds"):
        assert f"  {column}" in header
    assert first.split() == ["first", "5", "64.00", "(2)", "55.00", "1.2500", "3.5", "300", "35"]
    assert second.split() == ["_elsewhere$", "1", "9.50", "(1)", "9.50", "1.2500", "3.5", "100", "7"]
    assert "all.png" in drawn
    assert {COLOURS[0], COLOURS[1]} <= pixels(tmp_path / "all.png", (1600, 1000))


def test_the_standard_error_is_the_binomial_distributions():
    images = 12
    for hits in range(1, images):
        share = hits / images
        chances = [math.comb(images, k) * share**k * (1 - share) ** (images - k) for k in range(images + 1)]
        variance = sum(chance * (k / images - share) ** 2 for k, chance in enumerate(chances))
        assert standard_error(100 * share, images) == pytest.approx(100 * max(variance**0.5, 1 / images))
    assert standard_error(100.0, 360) == standard_error(0.0, 360) == pytest.approx(100 / 360)


def test_one_image_is_no_trend(monkeypatch):
    figures = []
    monkeypatch.setattr("isonet.plots.runs.as_png", lambda figure: figures.append(figure) or as_png(figure))
    step = 100 / 360
    rows = [{"epoch": epoch, "top1": 98.0 + step * (epoch % 2), "train_top1": 98.0} for epoch in range(1, 6)]
    for images in ({"a": 360}, {}):
        draw_runs({"a": rows}, ["top1"], images)
    known, unknown = (figure.axes[0] for figure in figures)
    low, high = known.get_ylim()
    assert high - low >= 9.99 * step
    assert "360" in known.get_title("left")
    band, *_ = (collection.get_datalim(known.transData) for collection in known.collections)
    assert band.y1 == pytest.approx(98 + step + standard_error(98 + step, 360))
    assert not unknown.collections
    assert unknown.get_ylim()[1] - unknown.get_ylim()[0] >= 0.99


def test_a_single_epoch_shows_its_standard_error_and_which_accuracy_is_which(monkeypatch):
    figures = []
    monkeypatch.setattr("isonet.plots.runs.as_png", lambda figure: figures.append(figure) or as_png(figure))
    draw_runs({"a": [{"epoch": 1, "top1": 50.0, "train_top1": 48.0}]}, ["top1"], {"a": 400})
    axis = figures[0].axes[0]
    fills = {line.get_ydata()[0]: line.get_fillstyle() for line in axis.lines if line.get_marker() == "o"}
    assert fills == {48.0: "none", 50.0: "full"}
    ends = axis.collections[-1].get_segments()[0][:, 1]
    assert ends == pytest.approx([47.5, 52.5])  # sqrt(0.5 * 0.5 / 400) = 0.025


def test_after_seven_runs_the_colours_repeat_with_a_different_marker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"r{i}" for i in range(8)]
    for i, name in enumerate(names):
        make_run(tmp_path / name, 1 + i, lambda epoch, i=i: 10.0 * i + epoch)
    curves.main(curves.parse_args([*names, "--key", "top1"]))
    assert set(COLOURS) <= pixels(tmp_path / "runs.png", (1600, 1000))
    looks = [tuple(look(i).values()) for i in range(42)]
    assert len(set(looks)) == 42


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (["nothing"], ["nothing", "outputs", "metrics.jsonl"]),
        (["twin"], ["twin", "2 runs", "outputs/a/twin", "outputs/b/twin"]),
        (["a/twin", "outputs/a/twin"], ["a/twin", "twice"]),
        (["empty"], ["empty/metrics.jsonl", "epoch"]),
        (["a/twin", "--output", "no/such.png"], ["no/such.png", "not a writable folder"]),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, runs, words):
    monkeypatch.chdir(tmp_path)
    for name in ("outputs/a/twin", "outputs/b/twin", "empty"):
        make_run(tmp_path / name, 0 if name == "empty" else 1, lambda epoch: 1.0)
    with pytest.raises(UserError) as error:
        compare(*runs, "--output-dir", "outputs")
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_runs_of_the_same_name_are_distinguished_by_their_folders(tmp_path, capsys):
    folders = [tmp_path / data_set / "twin" for data_set in "ab"]
    for folder in folders:
        make_run(folder, 1, lambda epoch: 1.0)
    compare(*folders, "--output", tmp_path / "a.png")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ["a/twin", "b/twin"]


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "7", '"epoch"', "{}", '{"epoch": 0}', '{"epoch": 1.5}', '{"epoch": true}', '{"epoch": "2"}',
     '{"epoch": 2, "top1": NaN}', '{"epoch": 2, "top1": 1e999}', "[" * 100_000, "\x00\xff"],
)  # fmt: skip
def test_an_invalid_line_is_counted_and_ignored(tmp_path, line):
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
