"""ISONet-1202 on CIFAR-10: norms over its layers at the start, the memory of a training step, and 300 of them.

python -m benchmarks.study.very_deep              all three, into results/very-deep.json and results/very-deep.png
python -m benchmarks.study.very_deep norms        one of norms, memory, steps; the others stay as they were
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from yacs.config import CfgNode

from benchmarks.common import machine
from benchmarks.study.rows import CONFIGS
from benchmarks.study.stored import RESULTS
from isonet import build_model, load_cfg
from isonet.data import build_loader
from isonet.isometry import signal_norms
from isonet.training import build_optimizer
from isonet.training.devices import place, seed_everything
from isonet.training.step import TrainStep

FILE = RESULTS / "very-deep.json"
CONFIG = CONFIGS / "ISO1202.yaml"
VARIANTS = {  # of the network, at its start
    "SReLU, delta": [],
    "ReLU, Kaiming": ["ISON.SReLU", False, "ISON.DIRAC_INIT", False],
}
STEPS, SHOWN = 300, 25  # training steps, and over how many each figure of the loss is a mean
MIB = 1 << 20
CPU = torch.device("cpu")


def norms(images: int = 16) -> dict[str, Any]:
    """Of each variant the mean norm after each activation and of the loss's gradient there, on validation images."""
    found = {}
    for name, opts in VARIANTS.items():
        cfg = load_cfg(CONFIG, ["RUNTIME.CHECKPOINT_ACTIVATIONS", False, *opts])
        seed_everything(cfg.RUNTIME.SEED)
        batch, labels = next(iter(build_loader(cfg, "val")))
        rows = signal_norms(build_model(cfg), batch[:images], labels[:images])
        found[name] = {key: [asdict(row)[key] for row in rows] for key in ("forward", "backward")}
    return {"images": images, **found}


def memory() -> dict[str, Any]:
    """Peak resident memory in MiB of a process that takes two training steps, without and with recomputing."""
    found = {}
    for recompute in (False, True):
        command = [sys.executable, "-m", "benchmarks.study.very_deep", "two-steps", str(recompute)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found["with" if recompute else "without"] = json.loads(output.splitlines()[-1])
    return found


def two_steps(recompute: str) -> None:
    """What a process of ``memory`` does; prints its peak and what it had before the first step."""
    cfg = load_cfg(CONFIG, ["RUNTIME.CHECKPOINT_ACTIVATIONS", recompute])
    step = training_step(cfg)
    size = cfg.SOLVER.TRAIN_BATCH_SIZE
    images, labels = torch.randn(size, 3, 32, 32), torch.arange(size) % cfg.DATASET.NUM_CLASSES
    before = _peak()
    step(images, labels)
    start = time.perf_counter()
    step(images, labels)
    print(json.dumps({"before": before, "peak": _peak(), "seconds": time.perf_counter() - start}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB  # Linux counts in KiB


def steps() -> dict[str, Any]:
    """Cross entropy and penalty of each of the first training steps."""
    cfg = load_cfg(CONFIG)
    step, loader = training_step(cfg), build_loader(cfg, "train")
    loader.set_epoch(1)
    losses: dict[str, list[float]] = {"cross_entropy": [], "penalty": []}
    start = time.perf_counter()
    for number, (images, labels) in zip(range(1, STEPS + 1), loader, strict=False):
        output = step(images, labels)
        losses["cross_entropy"].append(output.cross_entropy.item())
        losses["penalty"].append(output.penalty.item())
        if number % SHOWN == 0:
            mean = sum(losses["cross_entropy"][-SHOWN:]) / SHOWN
            print(f"step {number}: cross entropy {mean:.4f}, penalty {losses['penalty'][-1]:.4g}", flush=True)
    return {"batch": cfg.SOLVER.TRAIN_BATCH_SIZE, "rate": cfg.SOLVER.BASE_LR, **losses,
            "seconds": time.perf_counter() - start}  # fmt: skip


def training_step(cfg: CfgNode) -> TrainStep:
    seed_everything(cfg.RUNTIME.SEED)
    model = build_model(cfg)
    forward = place(model, [CPU], cfg.RUNTIME.CHANNELS_LAST, cfg.RUNTIME.COMPILE)
    model.train()
    return TrainStep(forward, model, build_optimizer(model, cfg), cfg.ISON.ORTHO_COEFF, seed=cfg.RUNTIME.SEED)


def read() -> dict[str, Any]:
    """What was measured so far."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def means(values: Sequence[float]) -> list[float]:
    """Of each ``SHOWN`` steps."""
    return [statistics.mean(values[start : start + SHOWN]) for start in range(0, len(values), SHOWN)]


PARTS = {"norms": norms, "memory": memory, "steps": steps}


def main(argv: Sequence[str]) -> None:
    """Measure what is asked for, and keep the rest of the file."""
    if argv[:1] == ["two-steps"]:
        two_steps(argv[1])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"of {', '.join(PARTS)}; none: all")
    parts = parser.parse_args(argv).parts or list(PARTS)
    found = read()
    for part in parts:
        found[part] = {"command": f"python -m benchmarks.study.very_deep {part}", **machine(), **PARTS[part]()}
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
