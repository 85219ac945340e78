"""Training on GPUs, in processes that see them."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from conftest import REPO, TINY, VISIBLE_GPUS
from launch import run_new_interpreter

DIGITS = REPO / "configs/digits_ISO20.yaml"

pytestmark = pytest.mark.skipif(
    not Path("/dev/nvidiactl").exists() or VISIBLE_GPUS == "", reason="no NVIDIA GPU is visible"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def visible(monkeypatch):
    """The GPUs that were visible when the tests began."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    return {} if VISIBLE_GPUS is None else {"CUDA_VISIBLE_DEVICES": VISIBLE_GPUS}


def test_train_resume_and_evaluate(tmp_path, visible):
    dropout = ["ISON.DROPOUT", True, "ISON.DROPOUT_RATE", 0.3]
    base = ["--cfg", DIGITS, "--gpus", "0", "--output", "a"]
    opts = [*TINY[4:-1], 2, *dropout]
    trained = run_new_interpreter("train.py", *base, *opts, cwd=tmp_path, **visible)
    assert trained.returncode == 0, trained.stderr
    assert "cuda:0" in trained.stdout
    resumed = run_new_interpreter("train.py", *base, "--resume", *opts[:-5], 3, *dropout, cwd=tmp_path, **visible)
    assert resumed.returncode == 0, resumed.stderr
    tested = run_new_interpreter("test.py", *base[:4], "--ckpt", "a", *opts, cwd=tmp_path, **visible)
    assert tested.returncode == 0, tested.stderr


def test_an_id_that_does_not_exist_lists_those_that_do(tmp_path, visible):
    result = run_new_interpreter("train.py", "--cfg", DIGITS, "--gpus", "0,99", cwd=tmp_path, **visible)
    assert result.returncode == 2
    assert "no GPU 99; visible are 0" in result.stderr


def test_the_fast_overrides(tmp_path, visible):
    fast = ["RUNTIME.CHANNELS_LAST", True, "RUNTIME.COMPILE", True, "RUNTIME.AMP", "bf16"]
    base = ["--cfg", DIGITS, "--gpus", "0", "--output", "a"]
    trained = run_new_interpreter("train.py", *base, *TINY[4:-1], 1, *fast, cwd=tmp_path, **visible)
    assert trained.returncode == 0, trained.stderr
    tested = run_new_interpreter("test.py", *base[:4], "--ckpt", "a", *fast, cwd=tmp_path, **visible)
    assert tested.returncode == 0, tested.stderr


def test_a_launched_process_uses_nccl_and_has_the_same_losses(tmp_path, visible):
    """With one GPU, NCCL has no other rank to send to, but is still called for every bucket."""
    base = ["--cfg", DIGITS, "--output", "a", *TINY[4:-1], 1, "RUNTIME.DETERMINISTIC", True, "OUTPUT_DIR"]
    alone = run_new_interpreter("train.py", *base, "alone", "--gpus", "0", cwd=tmp_path, **visible)
    assert alone.returncode == 0, alone.stderr
    one = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(free_port()), "NCCL_DEBUG": "VERSION"}  # fmt: skip
    launched = run_new_interpreter("train.py", *base, "launched", "--gpus", "0", cwd=tmp_path, **visible, **one)
    assert launched.returncode == 0, launched.stderr
    assert "NCCL version" in launched.stdout + launched.stderr
    rows = [json.loads((tmp_path / way / "digits/a/metrics.jsonl").read_text()) for way in ("alone", "launched")]
    assert rows[1] == pytest.approx(rows[0], rel=1e-5)


STEP_WITHOUT_WAITING = """
import sys, torch
from isonet import build_model, load_cfg
from isonet.config import uses_channels_last
from isonet.data import build_loader
from isonet.training import TrainStep, build_optimizer
from isonet.training.optim import Amp
from isonet.training.devices import place
from isonet.training.metrics import EpochSums

device = torch.device("cuda", 0)
cfg = load_cfg(sys.argv[1], ["RUNTIME.AMP", sys.argv[2]])
model = build_model(cfg)
forward = place(model, [device], uses_channels_last(cfg, "cuda"))
step = TrainStep(forward, model, build_optimizer(model, cfg), 1e-4, amp=Amp(cfg.RUNTIME.AMP, device))
batches, sums = list(build_loader(cfg, "train", [device])), EpochSums(device)
step(*batches[0])  # the one-time setup may wait
torch.cuda.set_sync_debug_mode("error")
for images, labels in batches[1:4]:
    sums.add(step(images, labels), labels)
"""


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_step_never_waits_for_the_device(visible, amp):
    import os
    import subprocess
    import sys

    command = [sys.executable, "-c", STEP_WITHOUT_WAITING, str(DIGITS), amp]
    result = subprocess.run(
        command, cwd=REPO, env={**os.environ, **visible}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
