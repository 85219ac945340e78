"""``python -m benchmarks.gpu`` at toy size on the CPU: the functions that run on a GPU, without one."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tarfile
import time

import pytest
import torch
from PIL import Image

from benchmarks.gpu.__main__ import main, parse_args
from benchmarks.gpu.jobs import FAILED, Job, Results, Section, difference, remark, run_sections
from benchmarks.tables import main as print_tables

SECTIONS = ["tests", "equality", "step times", "penalty", "ResNet-50", "torchrun", "resume", "epochs"]


def read(file):
    """Return the sections, and the rows by their work."""
    content = json.loads(file.read_text())
    assert content["machine"]["torch"] == torch.__version__
    return content["sections"], {row["work"]: row for row in content["rows"]}


def write_archive(folder):
    """Write an archive of images of ten colours, as the study has them."""
    for split, count in (("train", 7), ("val", 2)):
        for colour in range(10):
            images = folder / "cifar10-jpg" / split / f"{colour}"
            images.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (25 * colour, 0, 9 * number)).save(images / f"{number}.jpg")
    with tarfile.open(folder / "cifar10-jpg.tar.xz", "w:xz") as archive:
        archive.add(folder / "cifar10-jpg", "cifar10-jpg")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The options of a toy run without a compiler, which takes a minute, and the file that it writes."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    file = tmp_path / "toy.json"
    return ["--device", "cpu", "--toy", "--json", str(file), "--images", str(tmp_path / "packed")], file


def test_every_section_runs_and_equals_the_cpu(toy, tmp_path, monkeypatch, capsys):
    options, file = toy
    write_archive(tmp_path / "packed")
    assert main(parse_args(options)) == 0, capsys.readouterr().out
    sections, rows = read(file)
    assert list(sections) == SECTIONS
    assert all(section["outcome"] == "done" for section in sections.values()), sections
    assert not [row for row in rows.values() if row["note"].startswith(FAILED)]
    compared = [row for row in rows.values() if row["unit"] in ("relative", "numbers") and row["goal"] is not None]
    assert len(compared) == 8
    assert all(0 <= row["value"] <= row["goal"] for row in compared)
    assert rows["tests/training/test_gpu.py"]["note"] == "7 skipped"  # no GPU is visible
    assert rows["digits_ISO20 batch 4, float32"]["ratio"] > 0
    assert 0 < rows["bf16 from the CPU's float32: cifar10_ISO20, logits after three steps"]["value"] < 0.05
    for name in ("RISO8", "RES8"):
        assert "top-1 by epoch" in rows[f"{name}, cifar10-jpg"]["note"]
    not_run = [row["note"] for row in rows.values() if row["note"].startswith("not run")]
    assert sum("g++" in note for note in not_run) == 5
    monkeypatch.setattr(sys, "argv", ["tables", str(file)])
    print_tables()
    printed = capsys.readouterr().out
    assert all(f"| {work} |" in printed and section in printed for work in rows for section in SECTIONS)


@pytest.mark.torture
def test_compiled_networks_too(toy, tmp_path, monkeypatch):
    options, file = toy
    monkeypatch.setenv("PATH", os.defpath)
    write_archive(tmp_path / "packed")
    assert main(parse_args([*options, "--minutes", "30"])) == 0
    rows = read(file)[1]
    assert not [row["work"] for row in rows.values() if "g++" in row["note"]]
    assert rows["float32, compiled from the CPU's float32: cifar10_ISO20, logits after three steps"]["value"] < 1e-5


def test_without_time_images_and_pytest_every_row_says_so(toy, monkeypatch, capsys):
    options, file = toy
    assert main(parse_args([*options, "--minutes", "0"])) == 0
    sections, rows = read(file)
    assert list(sections) == SECTIONS
    assert {section["outcome"] for section in sections.values()} == {"not run"}
    assert {row["note"] for row in rows.values()} == {"not run: no time left"}

    monkeypatch.setitem(sys.modules, "pytest", None)
    monkeypatch.setattr("benchmarks.gpu.sections.sections", lambda place: parts(place, {"tests", "epochs"}))
    assert main(parse_args(options)) == 0
    assert [row["note"] for row in read(file)[1].values()] == ["not run: no pytest", *["not run: no images"] * 2]


def parts(place, names):
    from benchmarks.gpu.runs import epoch_jobs, test_jobs

    return [section for section in (Section("tests", 0.5, test_jobs(place)), Section("epochs", 0.5, epoch_jobs(place)))
            if section.name in names]  # fmt: skip


def test_a_missing_package_is_named(toy, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yacs", None)
    assert main(parse_args(toy[0])) == 2
    assert "yacs" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--minutes", "nan"], ["--minutes", "-1"], ["--json", "rows"]])
def test_options_that_cannot_work_are_refused(wrong, toy, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_args([*toy[0], *wrong])
    assert f"{wrong[0]} " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("content", [None, "{", "{}", "[1]", '{"machine": {}, "rows": [{"work": 1}]}'])
def test_a_file_without_results_is_named(content, tmp_path, capsys):
    file = tmp_path / "rows.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        print_tables([str(file)])
    assert str(file) in capsys.readouterr().err


class TestJobs:
    def run(self, file, *jobs, minutes=1.0):
        results = Results(file, {"torch": torch.__version__})
        run_sections([Section(f"part {i}", 1 / len(jobs), [job]) for i, job in enumerate(jobs)], minutes, results)
        return results, *read(file)

    def test_an_error_or_a_difference_ends_only_its_job(self, tmp_path):
        def broken(_until):
            yield remark("begun", "before the error")
            raise ValueError("first | line\nsecond line")

        def differs(_until):
            yield difference("exact", 2e-5, 1e-5)
            yield difference("unknown", float("nan"), 1e-5)

        file = tmp_path / "rows.json"
        jobs = Job("broken", broken), Job("differs", differs), Job("fine", lambda _: [difference("fine", 1e-6, 1e-5)])
        results, sections, rows = self.run(file, *jobs)
        assert results.failed
        assert [section["outcome"] for section in sections.values()] == ["failed", "failed", "done"]
        assert rows["begun"]["note"] == "before the error"
        assert rows["broken"]["note"] == "error: ValueError: first / line"
        assert rows["exact"]["note"].startswith("fail:")
        assert rows["unknown"]["note"].startswith("fail:")
        assert rows["unknown"]["value"] is None  # JSON has no NaN
        assert rows["fine"]["note"] == ""

    def test_a_job_ends_when_its_time_is_over(self, tmp_path):
        def endless(_until):
            yield remark("first row", "")
            while True:
                with contextlib.suppress(Exception):
                    time.sleep(0.01)

        file = tmp_path / "rows.json"
        _, sections, rows = self.run(file, Job("endless", endless), Job("next", lambda _: [remark("next", "ran")]),
                                     minutes=0.01)  # fmt: skip
        assert list(rows) == ["first row", "endless", "next"]
        assert "not finished" in rows["endless"]["note"]
        assert rows["next"]["note"] == "ran"
        assert sections["part 0"]["outcome"] == "done"

    def test_the_file_is_complete_after_every_row(self, tmp_path):
        file, seen = tmp_path / "rows.json", []

        def three(_until):
            for number in range(3):
                yield remark(f"row {number}", "")
                seen.append(list(read(file)[1]))

        self.run(file, Job("three", three))
        assert seen == [["row 0"], ["row 0", "row 1"], ["row 0", "row 1", "row 2"]]
