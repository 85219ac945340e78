"""Sweeps: the grid of a command, runs that diverge, and sweeps that are stopped or killed and then resume."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time

import pytest
from PIL import Image

from conftest import REPO
from isonet import load_cfg
from isonet.config import flat
from isonet.errors import ConfigError, UserError, run_cli
from isonet.files.run_folder import RunFolder
from isonet.plots import as_png
from isonet.plots.sweep import Point, draw_sweep
from isonet.signals import StopSignals
from isonet.tools.summary import Summary
from isonet.tools.sweep import __main__ as sweep
from isonet.tools.sweep.processes import run_all
from isonet.tools.sweep.runs import Run, leaf, make_grid, ranked
from isonet.training.run import run_training
from launch import start, wait_until

DIGITS = str(REPO / "configs/digits_ISO20.yaml")
QUICK = ["ISON.DEPTH", "8", "SOLVER.TRAIN_BATCH_SIZE", "128", "SOLVER.MAX_EPOCHS", "3", "RUNTIME.SAVE_EVERY", "4"]


def command(*pairs):
    return ["--cfg", DIGITS, "--output", "lr", *QUICK, *pairs]


def run_sweep(*arguments):
    sweep.main(sweep.parse_args(arguments))


@pytest.mark.torture
def test_a_killed_sweep_resumes_the_remaining_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    arguments = command("SOLVER.BASE_LR", "1e6,0.02")
    runs = tmp_path / "outputs/cls/digits"
    diverged, trained = RunFolder(runs / "lr-BASE_LR=1e6"), RunFolder(runs / "lr-BASE_LR=0.02")
    first = start("isonet.tools.sweep", *arguments, cwd=tmp_path)
    wait_until((trained.path / "epoch0001-step000004.pt").exists, first)
    os.kill(first.pid, signal.SIGKILL)  # only the sweep, not its process group
    printed = first.wait().stdout
    assert re.search(r"^\[1/2\] BASE_LR 1e6: diverged: .*not finite.* epoch 1\b", printed, re.MULTILINE)
    log = diverged.log.read_bytes()

    assert run_cli(sweep.main, sweep.parse_args(arguments)) == 0  # the first sweep's run may still be saving
    out = capsys.readouterr().out
    assert "2 runs, 1 " in out
    assert diverged.log.read_bytes() == log
    text = trained.log.read_text()
    assert "by SIGTERM" in text
    assert "resum" in text
    whole = run_training(load_cfg(DIGITS, [*QUICK, "SOLVER.BASE_LR", 0.02, "OUTPUT_DIR", str(tmp_path / "o")]), "whole")
    assert trained.metrics.read_bytes() == whole.metrics.read_bytes()
    top1 = [json.loads(line)["top1"] for line in whole.metrics.open()]
    check_files(runs / "lr", top1)
    assert f"{max(top1):.2f} ({1 + top1.index(max(top1))})" in out

    before = {file: file.stat().st_mtime_ns for file in trained.path.iterdir()}
    run_sweep(*arguments)  # every run is finished
    assert {file: file.stat().st_mtime_ns for file in trained.path.iterdir()} == before
    other_batch = [*arguments[:7], "64", *arguments[8:]]
    with pytest.raises(UserError, match=r"/lr is .* SOLVER.TRAIN_BATCH_SIZE 128, now 64.*--output"):
        run_sweep(*other_batch)
    with pytest.raises(UserError, match=r"/lr is .* SOLVER.BASE_LR.*--output"):
        run_sweep(*command("ISON.ORTHO_COEFF", "0,1"))
    shutil.rmtree(runs / "lr")  # runs of this name remain
    with pytest.raises(UserError, match=r"=1e6 is .* SOLVER.TRAIN_BATCH_SIZE 128, now 64.*--output"):
        run_sweep(*other_batch)
    for config in runs.glob("lr-*/config.yaml"):  # like the config of older runs, which trained on all images
        config.write_text("".join(line for line in config.open() if "DROP_LAST" not in line))
    with pytest.raises(UserError, match=r"SOLVER.DROP_LAST False, now True.*--output"):
        run_sweep(*arguments)


def test_the_number_of_epochs_is_a_difference_between_runs_if_the_rate_falls():
    before, after = (load_cfg(DIGITS, ["SOLVER.MAX_EPOCHS", epochs]) for epochs in (3, 4))
    assert sweep.difference(before, after) == ""
    falling = [load_cfg(DIGITS, ["SOLVER.MAX_EPOCHS", epochs, "SOLVER.SCHEDULE", "cosine"]) for epochs in (3, 4)]
    assert sweep.difference(*falling) == "SOLVER.MAX_EPOCHS 3, now 4"


def check_files(folder, top1):
    found = json.loads((folder / "sweep.json").read_text())
    assert found["keys"] == ["SOLVER.BASE_LR"]
    best, failed = found["runs"]
    assert (best["run"], best["state"], best["values"]) == ("lr-BASE_LR=0.02", "finished", {"SOLVER.BASE_LR": 0.02})
    assert (best["epochs"], best["best_top1"], best["last_top1"]) == (3, max(top1), top1[-1])
    assert (failed["state"], failed["best_top1"]) == ("diverged", None)
    assert "not finite" in failed["reason"]
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [row["SOLVER.BASE_LR"] for row in rows] == ["0.02", "1e6"]
    assert float(rows[0]["best_top1"]) == max(top1)
    assert rows[1]["reason"] == failed["reason"]
    with Image.open(folder / "sweep.png") as image:
        assert image.size == (1600, 1000)
    assert not list(folder.glob("*lock*")) + list(folder.glob(".*"))


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """``shell(script, slots)`` runs a sweep of three runs. Each run is a shell script instead of a training.

    It returns the runs in the order in which they ended, and the signal that stopped them. In the script, $name and
    $gpus are the arguments of the process, and $run is the folder of the run. Each run appends the line
    "started NAME GPUS" to the file ``started``.
    """
    monkeypatch.chdir(tmp_path)

    def run(script, slots):
        note = f"echo started $name $gpus >> {shlex.quote(str(tmp_path / 'started'))}"
        (tmp_path / "python").write_text(
            f"#!/bin/sh\nname=$6 gpus=$8\nrun=outputs/cls/digits/$name\n{note}\n{script}\n"
        )
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        runs = make_grid(DIGITS, "s", ["RUNTIME.SEED", "1,2,3"])
        with StopSignals() as stop:
            return list(run_all(runs, slots, tmp_path, stop)), stop.received

    return run


def started(tmp_path):
    file = tmp_path / "started"
    return [line.split()[1:] for line in file.read_text().splitlines()] if file.exists() else []


def test_each_slot_has_one_run_at_a_time(tmp_path, shell):
    wait = 'while [ "$name" = s-SEED=1 ] && [ $(wc -l < started) -lt 3 ]; do sleep 0.05; done'
    ended, received = shell(wait, ["4", "7"])
    assert received is None
    assert sorted(started(tmp_path)[:2]) == [["s-SEED=1", "4"], ["s-SEED=2", "7"]]
    assert started(tmp_path)[2] == ["s-SEED=3", "7"]  # the first run waits for the third
    assert sorted((run.name, run.state) for run in ended) == [(f"s-SEED={seed}", "finished") for seed in (1, 2, 3)]


def test_a_signal_stops_the_runs_and_no_other_run_starts(tmp_path, shell):
    def stop():
        while len(started(tmp_path)) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    ended, received = shell("cat; echo stopped: by SIGTERM, saved; exit 75", ["0", "1"])  # cat: until its input ends
    thread.join()
    assert received == signal.SIGTERM
    assert sorted(run.name for run in ended) == ["s-SEED=1", "s-SEED=2"]
    assert all((run.state, run.reason) == ("stopped", "by SIGTERM, saved") for run in ended)
    assert len(started(tmp_path)) == 2


def test_runs_stop_if_their_sweep_fails(tmp_path, shell, monkeypatch):
    """Runs also stop if the sweep is killed, because their standard input ends with the sweep."""
    monkeypatch.setattr(Run, "update", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shell('[ "$name" = s-SEED=1 ] || { cat; touch stopped; }', ["0", "1"])
    end = time.monotonic() + 60
    while not (tmp_path / "stopped").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("script", "state", "reason"),
    [
        ("echo error: no such data; exit 2", "failed", "no such data"),
        ("echo error: no such data; echo a last word; exit 2", "failed", "no such data"),
        ("mkdir -p $run; echo 12:00 NonFiniteError: a reason > $run/log.txt; exit 2", "diverged", "a reason"),
        ("printf 'Traceback\\n x\\nZeroDivisionError: y\\n'; exit 1", "failed", "exit code 1: ZeroDivisionError: y"),
        ("exit 1", "failed", "exit code 1: "),
        ("kill -9 $$", "failed", "killed by SIGKILL"),
    ],
)
def test_the_end_of_a_run_is_reported_in_one_line(shell, script, state, reason):
    ended, _ = shell(script, [None])
    assert [run.state for run in ended] == [state] * 3
    assert ended[0].reason.startswith(reason)
    assert "\n" not in ended[0].reason


def test_slots_are_gpus_of_each_run_or_of_all():
    """Without a GPU, --parallel gives the same number of slots on the CPU."""
    assert sweep.slots_of(None, False) == sweep.slots_of(None, True) == [None]
    assert sweep.slots_of("0,1", False) == ["0,1"]
    assert sweep.slots_of("0,1", True) == ["0", "1"]


def test_a_grid_is_the_product_of_all_values(tmp_path):
    opts = ["ISON.ORTHO_COEFF", "0.0001,1e-5", "SOLVER.LR_MILESTONES", "[1,2];[3]", "OUTPUT_DIR", f"{tmp_path}/a,b",
            "SOLVER.MAX_EPOCHS", "4", "ISON.DEPTH", "8"]  # fmt: skip
    runs = make_grid(DIGITS, "g", opts)
    assert list(runs[0].values) == ["ISON.ORTHO_COEFF", "SOLVER.LR_MILESTONES"]
    assert [run.name for run in runs] == [
        f"g-ORTHO_COEFF={coeff}-LR_MILESTONES={epochs}" for coeff in ("1e-4", "1e-5") for epochs in ("1_2", "3")
    ]
    expected = [(1e-4, [1, 2]), (1e-4, [3]), (1e-5, [1, 2]), (1e-5, [3])]
    assert [(run.cfg.ISON.ORTHO_COEFF, run.cfg.SOLVER.LR_MILESTONES) for run in runs] == expected
    for run in runs:
        assert run.cfg.SOLVER.MAX_EPOCHS == 4
        assert str(run.folder.path) == f"{tmp_path}/a,b/digits/{run.name}"
        assert load_cfg(DIGITS, run.opts) == run.cfg  # the process of the run receives the opts


@pytest.mark.parametrize("values", ["a/b.pt,a_b.pt", "é.pt,è.pt", "a b.pt,a_b.pt,a/b.pt"])
def test_different_values_are_different_runs(values):
    runs = make_grid(DIGITS, "s", ["MODEL.INIT_FROM", values])
    assert [run.cfg.MODEL.INIT_FROM for run in runs] == values.split(",")
    assert len({run.folder.path.name for run in runs}) == len(runs)
    assert all(run.folder.path.parent == runs[0].folder.path.parent for run in runs)
    assert make_grid(DIGITS, "s", ["MODEL.INIT_FROM", "a/b.pt,c.pt"])[0].name == "s-INIT_FROM=a_b.pt"  # as before


def test_every_key_has_a_unique_short_name():
    names = [leaf(key) for key in flat(load_cfg())]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["SOLVER.BASE_LR", "0.1"], "several values"),
        (["SOLVER.BASE_LR", "0.1,0.10"], "s-BASE_LR=0.1"),
        (["ISON.RES_MULTIPLIER", "0,-0"], "s-RES_MULTIPLIER=0"),
        (["SOLVER.BASE_LR", "0.1,,1"], "SOLVER.BASE_LR takes a number"),
        (["SOLVER.BASE_LR", "0.1,-1"], "SOLVER.BASE_LR must be between"),
        (["SOLVER.BASE_L", "0.1,1"], "did you mean SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR", "0.1,1", "ISON.DEPTH"], "has no value"),
        (["RUNTIME.SEED", ",".join(map(str, range(1001)))], "1,001"),
    ],
)
def test_a_mistake_is_reported_before_the_first_run(opts, words):
    with pytest.raises(ConfigError) as error:
        make_grid(DIGITS, "s", opts)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_negative_value_is_not_an_option():
    assert sweep.parse_args(command("ISON.RES_MULTIPLIER", "-1,-0.5")).opts[-1].strip() == "-1,-0.5"


def test_one_image_is_no_trend_and_a_failed_run_is_a_gap(monkeypatch):
    figures = []
    monkeypatch.setattr("isonet.plots.sweep.as_png", lambda figure: figures.append(figure) or as_png(figure))
    step = 100 / 360
    states = ["finished", "diverged", "finished", "running"]
    points = [
        Point({"A": i, "B": i % 2}, None if state == "diverged" else 98 + i * step / 3, 97.5, state,
              state == "diverged", 360)
        for i, state in enumerate(states)
    ]  # fmt: skip
    for keys in (["A"], ["A", "B"]):
        draw_sweep(keys, points)
    curve, (grid, _) = figures[0].axes[0], figures[1].axes
    assert curve.get_ylim()[1] - curve.get_ylim()[0] >= 9.99 * step
    lines = {line.get_label(): line for line in curve.lines}
    assert lines["best epoch, not finished"].get_fillstyle() == "none"
    assert list(lines["best epoch, not finished"].get_xdata()) == [3]
    (best,) = (line.get_ydata() for line in curve.lines if line.get_linestyle() == "-" and len(line.get_ydata()) == 4)
    assert [math.isnan(value) for value in best] == [state == "diverged" for state in states]
    low, high = grid.images[0].get_clim()
    assert (high - low, high) == (pytest.approx(10 * step), pytest.approx(98 + step))
    assert [text.get_text().split() for text in grid.texts][1:] == [["diverged"], ["98.19"], ["98.28", "running"]]


@pytest.mark.parametrize(
    "opts",
    [
        ["ISON.ORTHO_COEFF", "0,1e-4,1e-3"],
        ["ISON.DROPOUT", "False,True", "SOLVER.BASE_LR", "0.1,0.2"],
        ["ISON.DROPOUT", "False,True", "SOLVER.BASE_LR", "0.1,0.2", "RUNTIME.SEED", "1,2"],
    ],
)
def test_a_sweep_of_one_two_or_three_keys_is_drawn_before_and_after_its_runs(opts):
    runs = make_grid(DIGITS, "s", opts)
    keys = list(runs[0].values)
    pictures = [draw_sweep(keys, [run.point for run in runs])]
    for i, run in enumerate(runs):
        run.state, run.summary = "finished", Summary(2, 50.0 + i, 1, 40.0 + i)
    pictures.append(draw_sweep(keys, [run.point for run in runs]))
    runs[0].state = "diverged"
    pictures.append(draw_sweep(keys, [run.point for run in runs]))
    assert len(set(pictures)) == 3
    assert ranked(runs)[::-1][:2] == runs[:2]
