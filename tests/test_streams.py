"""Standard streams that are closed, full or cannot encode a letter, warnings, and the limit of open files."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import resource
import subprocess
import sys
import warnings
from argparse import Namespace

import pytest
import torch

from conftest import REPO, TINY
from isonet import load_cfg
from isonet.data.build import build_loader, num_workers
from isonet.data.processes import explain_dead_workers
from isonet.errors import EXIT_USER_ERROR, WorkerError, run_cli
from isonet.files.run_folder import RunFolder
from isonet.limits import workers_within_limit
from isonet.training.log import log, log_to_file, log_to_terminal
from isonet.training.run import run_training
from launch import forked, start

DIGITS = ["--cfg", REPO / "configs/digits_ISO20.yaml"]
FULL = "/dev/full"

pytestmark = pytest.mark.usefixtures("no_pictures")


def close_all():
    """Give this process the streams of a new interpreter that a shell starts with ``<&- >&- 2>&-``."""
    sys.stdin = sys.stdout = sys.stderr = None
    for number in range(3):
        os.close(number)


def fill_errors():
    os.dup2(os.open(FULL, os.O_WRONLY), 2)


def test_runs_without_usable_streams_train_evaluate_and_log_as_any_other(tmp_path):
    """The warning of the run with full outputs is lost, too."""
    command = ["train.py", *DIGITS, *TINY, "--output"]
    done = [
        start(*command, "closed", cwd=tmp_path, first=close_all),
        start(*command, "full", "--gpus", 1, cwd=tmp_path, first=fill_errors, out=FULL),
    ]
    plain = run_training(load_cfg(DIGITS[1], [*TINY, "OUTPUT_DIR", str(tmp_path / "plain")]), "run")
    assert [run.wait().returncode for run in done] == [0, 0]
    for name in ("closed", "full"):
        folder = RunFolder(tmp_path / "outputs/cls/digits" / name)
        assert folder.metrics.read_bytes() == plain.metrics.read_bytes()
        assert "best top-1" in folder.log.read_text().splitlines()[-1]

    command = ["test.py", "--ckpt", plain.path]
    tested = start(*command, "--json", "result.json", cwd=tmp_path, first=close_all)
    lost = start(*command, cwd=tmp_path, out=FULL).wait()  # the result is written only to the full output
    assert (lost.returncode, len(lost.stderr.splitlines())) == (EXIT_USER_ERROR, 1)
    assert "standard output" in lost.stderr
    assert tested.wait().returncode == 0
    best = max(json.loads(line)["top1"] for line in plain.metrics.open())
    assert json.loads((tmp_path / "result.json").read_text())["top1"] == pytest.approx(best)


@pytest.mark.parametrize("buffering", [1, -1])
def test_a_result_that_cannot_be_written_is_an_error(monkeypatch, capsys, buffering):
    """Without a buffer, the print fails. With a buffer, only the flush at the end fails."""
    with open(FULL, "w", buffering) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_cli(lambda _: print("a result"), Namespace()) == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert "standard output" in line


def test_a_mistake_that_nobody_can_read_keeps_its_exit_code(tmp_path):
    for first in (fill_errors, close_all):
        mistake = start("flopscount_iso.py", "--cfg", "gone.yaml", cwd=tmp_path, first=first).wait()
        assert mistake.returncode == EXIT_USER_ERROR


def test_closed_streams_become_the_null_device():
    """Otherwise the first open file gets the descriptor 2, and C libraries print into it."""
    code = "from isonet.streams import open_streams; import os, sys; open_streams(); print(sys.stdin.read()); "
    code += "print('lost', file=sys.stderr); os._exit(os.open(os.devnull, os.O_RDONLY))"
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    assert subprocess.run(command, cwd=REPO, check=False).returncode == 3


def test_letters_that_an_output_cannot_encode_are_escaped(monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def main(_args):
        log_to_terminal()
        log.info("run in dätä")
        log.warning("Größe")

    assert run_cli(main, Namespace) == 0
    assert (out.buffer.getvalue(), err.buffer.getvalue()) == (b"run in d\\xe4t\\xe4\n", b"warning: Gr\\xf6\\xdfe\n")


def test_a_name_that_the_locale_cannot_encode_is_one_message(capsys):
    assert run_cli(lambda _: "ä".encode("ascii"), Namespace()) == EXIT_USER_ERROR
    assert "PYTHONUTF8=1" in capsys.readouterr().err


def test_each_line_of_the_log_begins_with_the_date_and_warnings_are_on_standard_error(tmp_path, capsys):
    log_to_terminal()
    log_to_file(tmp_path / "log.txt")
    log.info("two\nlines")
    log.warning("careful\nindeed")
    for size in range(3):  # one place in the code, three texts
        warnings.warn(f"a picture of {size} pixels", stacklevel=1)
    out, err = capsys.readouterr()
    assert out == "two\nlines\n"
    first, second, third = err.splitlines()
    assert (first, second) == ("warning: careful", "indeed")
    assert third.startswith("warning: UserWarning: a picture of 0 pixels (")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    dated = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (.*)", line) for line in lines]
    assert [match[1] for match in dated] == ["two", "lines", first, second, third]


def test_a_full_or_closed_log_stream_ends_no_run_of_a_library(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    log_to_terminal()
    log.info("nobody reads this")
    log.warning("nor this")
    assert logging.getLogger("isonet") is log


def images(tmp_path):
    """Eight images with truncated EXIF data. Pillow warns when it reads them."""
    from PIL import Image

    for number in range(8):
        (tmp_path / "data/pics/val/a").mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (8, 8), (20 * number, 0, 0))
        picture.save(tmp_path / f"data/pics/val/a/{number}.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    opts = ["DATASET.ROOT", str(tmp_path / "data"), "DATASET.NAME", "pics", "DATASET.NUM_CLASSES", 1, "ISON.DEPTH", 8]
    return load_cfg(None, [*opts, "DATASET.IMAGE_SIZE", 8, "RUNTIME.INPUT", "workers", "SOLVER.TEST_BATCH_SIZE", 2])


def test_a_warning_of_every_image_is_logged_once_by_all_workers(tmp_path):
    cfg = images(tmp_path)
    log_to_terminal()
    log_to_file(tmp_path / "log.txt")
    assert num_workers(cfg) > 0
    for _ in range(2):
        assert sum(len(labels) for _, labels in build_loader(cfg, "val")) == 8
    (line,) = (tmp_path / "log.txt").read_text().splitlines()
    assert "EXIF" in line


def read_within_limits(_rank, cfg):
    """Return the number of workers and the images under a soft and a hard limit, and the error above the hard limit."""
    opened, free, found = len(os.listdir("/proc/self/fd")) - 1, 16 + 16 * 5 + 3, []
    for hard in (4096, opened + free):
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + free, hard))
        found.append((workers_within_limit(5), workers_within_limit(9)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 12, opened + 12))
    loader = build_loader(cfg, "val")
    found += [num_workers(cfg), torch.cat([images for images, _ in loader])]
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, opened + 12))
    try:
        with explain_dead_workers(), open(os.devnull):
            pass
    except WorkerError as error:
        found.append(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 12, opened + 12))
    return found


def test_too_few_open_files_are_raised_or_allow_fewer_workers_or_are_one_sentence(tmp_path):
    cfg = images(tmp_path)
    ((soft, hard, workers, read, message),) = forked(1, read_within_limits, tmp_path, cfg)
    assert soft == (5, 9)
    assert hard == (5, 5)
    assert workers == 0
    assert torch.equal(read, torch.cat([images for images, _ in build_loader(cfg, "val")]))
    assert "open files is 3 " in message
    assert "DATASET.NUM_WORKERS" in message
