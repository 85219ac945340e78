"""Training on GPUs, in processes that see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import REPO, TINY, VISIBLE_GPUS, run_script

DIGITS = REPO / "configs/digits_ISO20.yaml"

pytestmark = pytest.mark.skipif(
    not Path("/dev/nvidiactl").exists() or VISIBLE_GPUS == "", reason="no NVIDIA GPU is visible"
)


@pytest.fixture
def visible(monkeypatch):
    """The GPUs that were visible when the tests began."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    return {} if VISIBLE_GPUS is None else {"CUDA_VISIBLE_DEVICES": VISIBLE_GPUS}


def test_train_resume_and_evaluate(tmp_path, visible):
    dropout = ["ISON.DROPOUT", True, "ISON.DROPOUT_RATE", 0.3]
    base = ["--cfg", DIGITS, "--gpus", "0", "--output", "a"]
    opts = [*TINY[4:-1], 2, *dropout]
    trained = run_script("train.py", *base, *opts, cwd=tmp_path, **visible)
    assert trained.returncode == 0, trained.stderr
    assert "cuda:0" in trained.stdout
    resumed = run_script("train.py", *base, "--resume", *opts[:-5], 3, *dropout, cwd=tmp_path, **visible)
    assert resumed.returncode == 0, resumed.stderr
    tested = run_script("test.py", *base[:4], "--ckpt", "a", *opts, cwd=tmp_path, **visible)
    assert tested.returncode == 0, tested.stderr


def test_an_id_that_does_not_exist_lists_those_that_do(tmp_path, visible):
    result = run_script("train.py", "--cfg", DIGITS, "--gpus", "0,99", cwd=tmp_path, **visible)
    assert result.returncode == 2
    assert "no GPU 99; visible are 0" in result.stderr
