"""Compare losses and accuracy of 1, 2 and 4 processes, with and without accumulation.

python -m benchmarks.processes

The command trains an epoch of configs/digits_ISO20.yaml with a global batch of 72 on the CPU: 20 steps, the last step
with 69 images. It prints the cross entropy of some steps, the largest relative difference of any step from the run of
one process, and the accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common import machine, make_parser
from isonet import load_cfg
from isonet.launch import launch
from isonet.training import TrainStep
from isonet.training.run import run_training
from isonet.training.step import StepOutput

CONFIG = Path(__file__).parent.parent / "configs" / "digits_ISO20.yaml"
BATCH, RATE = 72, 0.02
WAYS = [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)]  # processes, SOLVER.ACCUMULATE
SHOWN = (1, 5, 10, 15, 20)


class _Recorded(TrainStep):
    """A ``TrainStep`` that records the losses of each step. Each process records its part of the losses."""

    losses: list[tuple[float, float]]

    def __call__(self, *args: object, **options: object) -> StepOutput:
        output = super().__call__(*args, **options)  # type: ignore[arg-type]
        self.losses.append((output.cross_entropy.item(), output.penalty.item()))
        return output


def train(folder: Path, accumulate: int) -> None:
    """Train in one process of a launcher, and write its losses to ``folder``."""
    import isonet.training.loop

    process, _Recorded.losses = launch(), []
    assert process
    isonet.training.loop.TrainStep = _Recorded  # type: ignore[misc]
    shares = process.size * accumulate
    opts = ["SOLVER.TRAIN_BATCH_SIZE", BATCH // shares, "SOLVER.ACCUMULATE", accumulate, "SOLVER.MAX_EPOCHS", 1,
            "SOLVER.BASE_LR", RATE / shares, "SOLVER.TEST_BATCH_SIZE", 50, "SOLVER.DROP_LAST", False,
            "OUTPUT_DIR", str(folder)]  # fmt: skip
    run_training(load_cfg(CONFIG, opts), "run")
    (folder / f"{process.rank}.json").write_text(json.dumps(_Recorded.losses))


def start(processes: int, accumulate: int) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the losses of each step summed over the processes, (steps, 2), and the row of metrics."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
        command += ["-m", "benchmarks.processes", "--train", place, "--accumulate", accumulate]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run([*map(str, command)], check=True, env=env, stdout=subprocess.DEVNULL)
        losses = [json.loads((Path(place) / f"{rank}.json").read_text()) for rank in range(processes)]
        (row,) = (Path(place) / "digits" / "run" / "metrics.jsonl").read_text().splitlines()
    return torch.tensor(losses, dtype=torch.float64).sum(0), json.loads(row)


def table() -> str:
    head = " | ".join(f"step {n}" for n in SHOWN)
    lines = [
        f"| processes | ACCUMULATE | {head} | cross entropy differs by | penalty differs by | top-1 | top-5 |",
        "|---|---|" + 9 * "---:|",
    ]
    alone = None
    for processes, accumulate in WAYS:
        losses, row = start(processes, accumulate)
        alone = losses if alone is None else alone
        differs = ((losses - alone).abs() / alone.abs().clamp(min=1e-12)).amax(0).tolist()
        shown = " | ".join(f"{losses[n - 1, 0]:.6f}" for n in SHOWN)
        far = " | ".join(f"{d:.1e}" for d in differs)
        lines.append(f"| {processes} | {accumulate} | {shown} | {far} | {row['top1']:.2f} | {row['top5']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--accumulate", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(args.train, args.accumulate)
        return
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(table())


if __name__ == "__main__":
    main()
