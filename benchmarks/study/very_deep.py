"""ISONet-1202 on CIFAR-10: norms over its layers at initialisation, memory of a training step, the first 300 steps.

python -m benchmarks.study.very_deep              measure all three and write results/very-deep.json
python -m benchmarks.study.very_deep norms        measure one of norms, memory and steps, and keep the other parts
python -m benchmarks.study tables                 write their tables and figure
"""

from __future__ import annotations

import argparse
import json
import math
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
from isonet.config import uses_channels_last
from isonet.data import build_loader
from isonet.errors import run_cli
from isonet.isometry import signal_norms
from isonet.tools.cli import Parser
from isonet.training import build_optimizer
from isonet.training.devices import place, seed_everything
from isonet.training.log import versions
from isonet.training.step import TrainStep

FILE = RESULTS / "very-deep.json"
CONFIG = CONFIGS / "ISO1202.yaml"
VARIANTS = {  # variants of the network at initialisation
    "SReLU, delta": [],
    "SReLU, delta-orthogonal": ["ISON.DELTA_ORTHOGONAL", True],
    "SReLU, orthogonal": ["ISON.ORTHOGONAL_CONV", True],
    "SReLU, Kaiming": ["ISON.DIRAC_INIT", False],
    "ReLU, delta": ["ISON.SReLU", False],
    "ReLU, Kaiming": ["ISON.SReLU", False, "ISON.DIRAC_INIT", False],
}
STEPS, SHOWN = 300, 25  # training steps, and how many of them each mean covers
MIB = 1 << 20
CPU = torch.device("cpu")


def norms(images: int = 16) -> dict[str, Any]:
    """Return, for each variant, the mean norm of each activation and of its gradient, on validation images.

    A norm is None if it is non-finite.
    """
    result = {}
    for name, opts in VARIANTS.items():
        cfg = load_cfg(CONFIG, ["RUNTIME.CHECKPOINT_ACTIVATIONS", False, *opts])
        seed_everything(cfg.RUNTIME.SEED)
        batch, labels = next(iter(build_loader(cfg, "val")))
        rows = signal_norms(build_model(cfg), batch[:images], labels[:images])
        result[name] = {
            key: [value if math.isfinite(value) else None for value in (asdict(row)[key] for row in rows)]
            for key in ("forward", "backward")
        }
    return {"images": images, **result}


def memory() -> dict[str, Any]:
    """Measure the peak memory in MiB of a process that takes two training steps, without and with recomputation."""
    result = {}
    for recompute in (False, True):
        command = [sys.executable, "-m", "benchmarks.study.very_deep", "two-steps", str(recompute)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result["with" if recompute else "without"] = json.loads(output.splitlines()[-1])
    return result


def two_steps(recompute: str) -> None:
    """Take two steps in a process of ``memory``, and print its memory before the first step and its peak, in MiB."""
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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB  # Linux reports KiB


def steps() -> dict[str, Any]:
    """Return cross entropy and penalty of each of the first training steps."""
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
    forward = place(model, [CPU], uses_channels_last(cfg, "cpu"), cfg.RUNTIME.COMPILE)
    model.train()
    return TrainStep(forward, model, build_optimizer(model, cfg), cfg.ISON.ORTHO_COEFF, seed=cfg.RUNTIME.SEED)


def read() -> dict[str, Any]:
    """Return the stored measurements, or an empty dictionary if there are none."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def spread(norms: Sequence[float | None]) -> float:
    """Return the largest norm divided by the smallest, or infinity if any norm is 0 or non-finite."""
    finite = [norm for norm in norms if norm]
    return max(finite) / min(finite) if len(finite) == len(norms) else math.inf


def means(values: Sequence[float]) -> list[float]:
    """Return the means over ``SHOWN`` steps each."""
    return [statistics.mean(values[start : start + SHOWN]) for start in range(0, len(values), SHOWN)]


PARTS = {"norms": norms, "memory": memory, "steps": steps}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the parts to measure."""
    parser = Parser(
        prog="python -m benchmarks.study.very_deep", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one or more of {', '.join(PARTS)} (default: all)")
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    return args


def main(args: argparse.Namespace) -> None:
    """Measure the parts, and keep the other parts in the file."""
    for part in args.parts or PARTS:
        how = {"command": f"python -m benchmarks.study.very_deep {part}", **machine(), "commit": versions()["commit"]}
        measured = {**how, **PARTS[part]()}
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps({**read(), part: measured}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["two-steps"]:
        two_steps(sys.argv[2])
    else:
        sys.exit(run_cli(main, parse_args))
