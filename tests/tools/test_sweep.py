"""Sweeps: the grid of a command, runs that diverge, a sweep that is stopped or really killed and goes on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
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
from isonet.plots.sweep import draw_sweep
from isonet.tools.summary import Summary
from isonet.tools.sweep import __main__ as sweep
from isonet.tools.sweep.grid import leaf, make_grid
from isonet.tools.sweep.processes import Child, run_all
from isonet.tools.sweep.results import Result, difference, ranked
from isonet.training.run import run_training

DIGITS = str(REPO / "configs/digits_ISO20.yaml")
QUICK = ["ISON.DEPTH", "8", "SOLVER.TRAIN_BATCH_SIZE", "128", "SOLVER.MAX_EPOCHS", "3", "RUNTIME.SAVE_EVERY", "4"]


def command(*pairs):
    return ["--cfg", DIGITS, "--output", "lr", *QUICK, *pairs]


def wait_for(file, process=None):
    end = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end
        assert process is None or process.poll() is None
        time.sleep(0.002)


def test_a_sweep_that_is_killed_goes_on_with_what_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    arguments = command("SOLVER.BASE_LR", "1e6,0.02")
    runs = tmp_path / "outputs/cls/digits"
    diverged, trained = RunFolder(runs / "lr-BASE_LR=1e6"), RunFolder(runs / "lr-BASE_LR=0.02")
    with subprocess.Popen([sys.executable, "-m", "isonet.tools.sweep", *arguments], stdout=subprocess.PIPE) as first:
        wait_for(trained.path / "epoch0001-step000004.pt", first)
        first.kill()
        printed = first.stdout.read().decode()
    assert "[1/2] BASE_LR 1e6: diverged: the loss or its gradient is not finite in epoch 1" in printed
    log = diverged.log.read_bytes()

    assert run_cli(sweep.main, sweep.parse_args(arguments)) == 0  # what the first had begun may still be saving
    out = capsys.readouterr().out
    assert "2 runs, 1 of them to do" in out
    assert diverged.log.read_bytes() == log
    text = trained.log.read_text()
    assert "Stopped: by SIGTERM" in text
    assert "resuming" in text
    whole = run_training(load_cfg(DIGITS, [*QUICK, "SOLVER.BASE_LR", 0.02, "OUTPUT_DIR", str(tmp_path / "o")]), "whole")
    assert trained.metrics.read_bytes() == whole.metrics.read_bytes()
    top1 = [json.loads(line)["top1"] for line in whole.metrics.open()]
    check_files(runs / "lr", top1)
    assert f"{max(top1):.2f} ({1 + top1.index(max(top1))})" in out

    before = {file: file.stat().st_mtime_ns for file in trained.path.iterdir()}
    sweep.main(sweep.parse_args(arguments))  # which has nothing to do
    assert {file: file.stat().st_mtime_ns for file in trained.path.iterdir()} == before
    with pytest.raises(UserError, match=r"lr is a sweep with SOLVER.TRAIN_BATCH_SIZE 128, now it is 64: choose"):
        sweep.main(sweep.parse_args([*arguments[:7], "64", *arguments[8:]]))
    with pytest.raises(UserError, match=r"lr is a sweep of SOLVER.BASE_LR: choose another --output"):
        sweep.main(sweep.parse_args(command("ISON.ORTHO_COEFF", "0,1")))
    shutil.rmtree(runs / "lr")  # what is left are runs of this name
    with pytest.raises(UserError, match=r"1e6 is a run with SOLVER.TRAIN_BATCH_SIZE 128, now it is 64: choose"):
        sweep.main(sweep.parse_args([*arguments[:7], "64", *arguments[8:]]))
    for config in runs.glob("lr-*/config.yaml"):  # as runs wrote it that took all images, before the key existed
        config.write_text("".join(line for line in config.open() if "DROP_LAST" not in line))
    with pytest.raises(UserError, match=r"is a run with SOLVER.DROP_LAST False, now it is True: choose"):
        sweep.main(sweep.parse_args(arguments))


def test_the_end_of_a_falling_rate_is_part_of_a_run():
    before, after = (load_cfg(DIGITS, ["SOLVER.MAX_EPOCHS", epochs]) for epochs in (3, 4))
    assert difference(before, after) == ""
    falling = [load_cfg(DIGITS, ["SOLVER.MAX_EPOCHS", epochs, "SOLVER.SCHEDULE", "cosine"]) for epochs in (3, 4)]
    assert difference(*falling) == "SOLVER.MAX_EPOCHS 3, now it is 4"


def check_files(folder, top1):
    found = json.loads((folder / "sweep.json").read_text())
    assert found["keys"] == ["SOLVER.BASE_LR"]
    best, failed = found["runs"]
    assert (best["run"], best["state"], best["values"]) == ("lr-BASE_LR=0.02", "finished", {"SOLVER.BASE_LR": 0.02})
    assert (best["epochs"], best["best_top1"], best["last_top1"]) == (3, max(top1), top1[-1])
    assert (failed["state"], failed["best_top1"]) == ("diverged", None)
    assert failed["reason"].startswith("the loss or its gradient is not finite in epoch 1, step ")
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [row["SOLVER.BASE_LR"] for row in rows] == ["0.02", "1e6"]
    assert float(rows[0]["best_top1"]) == max(top1)
    assert rows[1]["reason"] == failed["reason"]
    with Image.open(folder / "sweep.png") as image:
        assert image.size == (1600, 1000)
    assert not list(folder.glob("*lock*")) + list(folder.glob(".*"))


def shell(tmp_path, script):
    """What starts a shell instead of a run: it reports in lines of a file when it begins and when it ends."""

    def launch(run, slot):
        output = tmp_path / f"{run}.txt"
        line = f"echo begin {run} {slot} >> {tmp_path}/all; {script}"
        with output.open("wb") as file:
            return Child(run, subprocess.Popen(["sh", "-c", line], stdout=file, stderr=file), output)

    return launch


def test_each_slot_has_one_run_at_a_time(tmp_path):
    ended = []
    launch = shell(tmp_path, "sleep 0.3")
    assert run_all(list("abcd"), ["0", "1"], launch, lambda child: ended.append((child.run, child.outcome))) is None
    begun = [line.split()[1:] for line in (tmp_path / "all").read_text().splitlines()]
    assert sorted(begun[:2]) == [["a", "0"], ["b", "1"]]
    assert sorted(run for run, _ in begun) == list("abcd")
    assert {slot for _, slot in begun[2:]} == {"0", "1"}
    assert sorted(ended) == [(run, ("finished", "")) for run in "abcd"]


def test_a_signal_is_passed_on_and_what_has_not_begun_does_not_begin(tmp_path):
    def stop():
        while not (tmp_path / "all").exists() or len((tmp_path / "all").read_text().splitlines()) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    ended = []
    script = "trap 'echo stopped: by SIGTERM, saved; exit 75' TERM; while :; do sleep 0.05; done"
    thread = threading.Thread(target=stop)
    thread.start()
    assert run_all(list("abc"), ["0", "1"], shell(tmp_path, script), lambda child: ended.append(child)) == "SIGTERM"
    thread.join()
    assert sorted(child.run for child in ended) == ["a", "b"]
    assert all(child.outcome == ("stopped", "by SIGTERM, saved") for child in ended)


@pytest.mark.parametrize(
    ("script", "state", "reason"),
    [
        ("echo error: no such data; exit 2", "failed", "no such data"),
        ("echo error: not finite; echo a last word; exit 3", "diverged", "not finite"),
        ("printf 'Traceback\\n x\\nZeroDivisionError: y\\n'; exit 1", "failed", "exit code 1: ZeroDivisionError: y"),
        ("exit 1", "failed", "exit code 1: without a word"),
        ("kill -9 $$", "failed", "killed by SIGKILL; what it printed is in "),
    ],
)
def test_how_a_run_ended_is_told_in_a_line(tmp_path, script, state, reason):
    ended = []
    run_all(["a"], [None], shell(tmp_path, script), ended.append)
    assert ended[0].outcome[0] == state
    assert ended[0].outcome[1].startswith(reason)
    assert "\n" not in ended[0].outcome[1]


def test_slots_are_gpus_of_each_run_or_of_all():
    """Without a GPU, those of --parallel are as many on the CPU."""
    assert sweep._slots(None, False) == sweep._slots(None, True) == [None]
    assert sweep._slots("0,1", False) == ["0,1"]
    assert sweep._slots("0,1", True) == ["0", "1"]


def test_a_grid_is_the_product_of_all_values(tmp_path):
    opts = ["ISON.ORTHO_COEFF", "0.0001,1e-5", "SOLVER.LR_MILESTONES", "[1,2];[3]", "OUTPUT_DIR", f"{tmp_path}/a,b",
            "SOLVER.MAX_EPOCHS", "4", "ISON.DEPTH", "8"]  # fmt: skip
    grid = make_grid(DIGITS, "g", opts)
    assert grid.keys == ["ISON.ORTHO_COEFF", "SOLVER.LR_MILESTONES"]
    assert [run.name for run in grid.runs] == [
        f"g-ORTHO_COEFF={coeff}-LR_MILESTONES={epochs}" for coeff in ("1e-4", "1e-5") for epochs in ("1_2", "3")
    ]
    expected = [(1e-4, [1, 2]), (1e-4, [3]), (1e-5, [1, 2]), (1e-5, [3])]
    assert [(run.cfg.ISON.ORTHO_COEFF, run.cfg.SOLVER.LR_MILESTONES) for run in grid.runs] == expected
    for run in grid.runs:
        assert run.cfg.SOLVER.MAX_EPOCHS == 4
        assert str(run.folder.path) == f"{tmp_path}/a,b/digits/{run.name}"
        assert flat(load_cfg(DIGITS, [*opts[4:], *run.opts])) == flat(run.cfg)  # what its process is given


def test_every_key_has_a_short_name_of_its_own():
    names = [leaf(key) for key in flat(load_cfg())]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.BASE_LR", "0.1"], "no key has several values"),
        (["SOLVER.BASE_LR", "0.1,0.10"], "one value is given twice: s-BASE_LR=0.1 would be two runs"),
        (["SOLVER.BASE_LR", "0.1,,1"], "a value is missing beside ','"),
        (["SOLVER.BASE_LR", "0.1,2", "SOLVER.BASE_LR", "3"], "is given twice: separate its values by commas"),
        (["SOLVER.BASE_LR", "0.1,-1"], "SOLVER.BASE_LR must be between"),
        (["SOLVER.BASE_L", "0.1,1"], "did you mean SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR", "0.1,1", "ISON.DEPTH"], "ISON.DEPTH has no value"),
        (["RUNTIME.SEED", ",".join(map(str, range(1001)))], "1,001 runs are more than a sweep has"),
    ],
)
def test_mistakes_are_found_before_the_first_run(opts, message):
    with pytest.raises(ConfigError) as error:
        make_grid(DIGITS, "s", opts)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_negative_values_are_no_options():
    assert sweep.parse_args(command("ISON.RES_MULTIPLIER", "-1,-0.5")).opts[-1].strip() == "-1,-0.5"


@pytest.mark.parametrize(
    "opts",
    [
        ["ISON.ORTHO_COEFF", "0,1e-4,1e-3"],
        ["ISON.DROPOUT", "False,True", "SOLVER.BASE_LR", "0.1,0.2"],
        ["ISON.DROPOUT", "False,True", "SOLVER.BASE_LR", "0.1,0.2", "RUNTIME.SEED", "1,2"],
    ],
)
def test_sweeps_of_one_two_and_three_keys_are_drawn_at_every_moment(tmp_path, opts):
    grid = make_grid(DIGITS, "s", opts)
    results = [Result(run) for run in grid.runs]
    pictures = [draw_sweep(grid.keys, [result.point for result in results])]
    for i, result in enumerate(results):
        result.state, result.summary = "finished", Summary(2, 50.0 + i, 1, 40.0 + i)
    pictures.append(draw_sweep(grid.keys, [result.point for result in results]))
    results[0].state = "diverged"
    pictures.append(draw_sweep(grid.keys, [result.point for result in results]))
    assert len(set(pictures)) == 3
    assert [result.run.name for result in ranked(results)][::-1][:2] == [grid.runs[0].name, grid.runs[1].name]
