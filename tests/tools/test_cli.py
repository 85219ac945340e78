"""The options of all tools: overrides, places to write to, and cells of CSV files."""

from __future__ import annotations

import csv
import io
import os
from contextlib import nullcontext

import pytest

import flopscount_iso
import test as test_script
import train
from isonet.errors import UserError
from isonet.tools import curves, export, isometry, predict
from isonet.tools.cli import as_cell, look_for_folder_of, look_for_json, look_for_output_folder, split_overrides
from isonet.tools.sweep import __main__ as sweep

TWICE = ["SOLVER.BASE_LR", "0.1", "ISON.DEPTH", "8", "SOLVER.BASE_LR", "0.2"]
COMMANDS = {
    "train": (train.parse_args, ["--cfg", "a.yaml"]),
    "resume": (train.parse_args, ["--cfg", "a.yaml", "--resume"]),
    "test": (test_script.parse_args, ["--ckpt", "a.pt"]),
    "flops": (flopscount_iso.parse_args, ["--cfg", "a.yaml"]),
    "predict": (predict.parse_args, ["--ckpt", "a.pt", "a.png"]),
    "export": (export.parse_args, ["--ckpt", "a.pt", "--format", "torch"]),
    "isometry": (isometry.parse_args, ["--cfg", "a.yaml"]),
    "compare": (isometry.parse_args, ["--compare", "a.yaml"]),
    "sweep": (sweep.parse_args, ["--cfg", "a.yaml", "--output", "s"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_key_that_is_given_twice_is_refused(capsys, command):
    parse_args, arguments = COMMANDS[command]
    assert parse_args([*arguments, *TWICE[:4]]).opts == TWICE[:4]
    with pytest.raises(SystemExit) as stopped:
        parse_args([*arguments, *TWICE])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "SOLVER.BASE_LR is given twice" in line


@pytest.mark.parametrize("name", ["MODEL.jpg", "SOLVER.png", "RUNTIME.Seed", "DATASET.tar.gz", "model.SEED", "MODEL."])
def test_a_name_that_is_no_key_is_a_file(name):
    assert split_overrides(["a.png", name, "RUNTIME.SEED", "1"]) == (["a.png", name], ["RUNTIME.SEED", "1"])


def test_a_name_like_a_key_is_a_file_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_overrides(["MODEL.JPG", "1"]) == ([], ["MODEL.JPG", "1"])  # a misspelt key, which is reported
    for name in ("MODEL.JPG", "RUNTIME.SEED"):
        (tmp_path / name).touch()
    assert split_overrides(["MODEL.JPG", "RUNTIME.SEED", "1"]) == (["MODEL.JPG"], ["RUNTIME.SEED", "1"])


def test_a_place_where_no_file_can_be_is_refused_first(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for place in (None, tmp_path / "new.json", tmp_path / "file"):
        look_for_folder_of("--json", place and str(place))
    below = [tmp_path / name for name in ("pipe", "gone/a", "file/a")]
    for place in ("", tmp_path, *below, "/dev/null", "/dev/stdout"):
        with pytest.raises(UserError, match="--json"):
            look_for_folder_of("--json", str(place))
    look_for_output_folder("--output", str(tmp_path / "a/b/c"))
    for place in (tmp_path / "file", tmp_path / "file/a/b", tmp_path / "pipe"):
        with pytest.raises(UserError, match=r"--output .* not a writable folder"):
            look_for_output_folder("--output", str(place))


def test_json_replaces_only_the_figures_of_an_earlier_evaluation(tmp_path):
    for content, replaced in ((b"", True), (b'{"top1": 1.5}', True), (b'{"a": 1}', False), (b"\x80\x02", False)):
        (tmp_path / "best.pt").write_bytes(content)
        with nullcontext() if replaced else pytest.raises(UserError, match=r"--json .*best.pt"):
            look_for_json(str(tmp_path / "best.pt"))
        assert (tmp_path / "best.pt").read_bytes() == content


def test_an_output_is_checked_before_the_work(tmp_path):
    """The inputs do not exist, so an error about the output shows that no input has been read."""
    for main, parse_args, option, arguments in (
        (test_script.main, test_script.parse_args, "--json", ["--ckpt", "gone.pt"]),
        (export.main, export.parse_args, "--output", ["--ckpt", "gone.pt", "--format", "torch"]),
        (curves.main, curves.parse_args, "--output", ["gone"]),
    ):
        (tmp_path / "a.png").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=rf"{option} .*a\.png is a folder"):
            main(parse_args([*arguments, option, str(tmp_path / "a.png")]))
    (tmp_path / "b").touch()
    with pytest.raises(UserError, match=r"--output .* not a writable folder"):
        isometry.main(isometry.parse_args(["--cfg", "gone.yaml", "--output", str(tmp_path / "b")]))


FORMULAS = ["=1+1", "+a", "-a.png", "@a", " =a", "\t=a", "\uff1da"]
TEXTS = ["-1", "+1.5", "-1e-4", "a=b", "a-b", "", "1", "./-a.png", "'a"]


def test_cells_that_a_spreadsheet_would_run_begin_with_an_apostrophe():
    assert [as_cell(text) for text in FORMULAS] == [f"'{text}" for text in FORMULAS]
    assert [as_cell(text) for text in TEXTS] == TEXTS


def test_predictions_as_csv_are_quoted(capsys, tmp_path):
    found = [(tmp_path / "a.png", [(0, 0.75), (1, 0.25)]), (predict.Path("-x.png"), [(1, 1.0)])]
    predict.print_csv(found, ["=cmd", "-1"], [])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["image"] for row in rows] == [str(tmp_path / "a.png")] * 2 + ["'-x.png"]
    assert [row["class"] for row in rows] == ["'=cmd", "-1", "-1"]
    assert [float(row["probability"]) for row in rows] == [0.75, 0.25, 1.0]
