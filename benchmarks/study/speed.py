"""The time of an epoch: steps and evaluation of each config, on an idle machine.

The time excludes compilation, which takes about 20 s once, and waiting for the input, which takes half a second per
epoch. All configs of one call are timed alternately so that they can be compared: on a shared machine, timings minutes
apart differ by up to 12 %. Each turn takes several steps in a row, as in training, because the caches contain the data
of another network before the first step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from benchmarks.common import interleave, machine
from benchmarks.study.rows import Row
from benchmarks.study.stored import RESULTS
from isonet import build_model
from isonet.config import load_cfg, uses_channels_last
from isonet.files.storage import write_file
from isonet.training import build_optimizer
from isonet.training.devices import place
from isonet.training.log import versions
from isonet.training.optim import Amp
from isonet.training.step import TrainStep

FILE = RESULTS / "speed.json"
IMAGES = {"train": 50_000, "val": 10_000}
REPEATS = 25
IN_A_ROW = 4
CPU = torch.device("cpu")


def measure(rows: Sequence[Row]) -> None:
    """Time an epoch of each config of ``rows``, and add the seconds to results/speed.json."""
    cfgs = {row.config: load_cfg(row.path) for row in rows}
    parts = [part for cfg in cfgs.values() for part in _step_and_evaluation(cfg)]
    with torch._dynamo.config.patch(recompile_limit=len(parts)):  # the default stops compiling at the ninth network
        seconds = iter(interleave(parts, REPEATS, CPU))
    call = datetime.now(UTC).isoformat(timespec="seconds")
    timings, facts = read(), {"call": call, **machine(), "commit": versions()["commit"]}
    for name, cfg in cfgs.items():
        step, evaluation = next(seconds) / IN_A_ROW, next(seconds) / IN_A_ROW
        steps = IMAGES["train"] / cfg.SOLVER.TRAIN_BATCH_SIZE
        batches = IMAGES["val"] / cfg.SOLVER.TEST_BATCH_SIZE
        epoch = steps * step + batches * evaluation
        timings[name] = {"step": step, "evaluation": evaluation, "epoch": epoch, **facts}
        print(f"{name}: step {1e3 * step:.1f} ms, epoch {epoch:.1f} s")
    write_file(FILE, json.dumps(timings, indent=1) + "\n")


def read() -> dict[str, dict[str, Any]]:
    """Return, for each config, the seconds of a step, an evaluated batch and an epoch, with time and machine."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def _step_and_evaluation(cfg: CfgNode) -> tuple[Callable[[], object], Callable[[], object]]:
    model = build_model(cfg)
    forward = place(model, [CPU], uses_channels_last(cfg, "cpu"), cfg.RUNTIME.COMPILE)
    amp = Amp(cfg.RUNTIME.AMP, CPU)
    step = TrainStep(forward, model, build_optimizer(model, cfg), cfg.ISON.ORTHO_COEFF, amp=amp)
    images, tests = _images(cfg.SOLVER.TRAIN_BATCH_SIZE), _images(cfg.SOLVER.TEST_BATCH_SIZE)
    labels = torch.arange(len(images)) % cfg.DATASET.NUM_CLASSES

    def train() -> None:
        model.train()
        for _ in range(IN_A_ROW):
            step(images, labels)

    return train, lambda: _evaluate(model, forward, amp, tests)


def _evaluate(model: nn.Module, forward: nn.Module, amp: Amp, images: Tensor) -> None:
    model.eval()
    with torch.inference_mode(), amp.autocast():
        for _ in range(IN_A_ROW):
            forward(images)


def _images(number: int) -> Tensor:
    return torch.randn(number, 3, 32, 32).contiguous(memory_format=torch.channels_last)
