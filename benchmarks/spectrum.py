"""Measure the share of an epoch that RUNTIME.LOG_SPECTRUM 1 takes.

python -m benchmarks.spectrum

The baseline is the epoch: the time of a training step times the number of steps per epoch.
"""

from __future__ import annotations

import torch

from benchmarks.cases import CONFIGS, Case, ours
from benchmarks.common import Row, interleave, make_parser, report
from isonet import build_model, load_cfg
from isonet.training.report import singular_values

# network, number of training images
CASES = [
    (Case("digits_ISO20", 32, 8, repeats=20), 1437),
    (Case("cifar10_ISO56", 128, 32, repeats=5), 50_000),
    (Case("cifar10_ISO110", 128, 32, repeats=3), 50_000),
    (Case("IN1k-ISO34", 16, 224, repeats=2), 1_281_167),
    (Case("IN1k-RISO50", 16, 224, repeats=2), 1_281_167),
]
QUICK = 2


def row(case: Case, images: int, device: torch.device) -> Row:
    step = ours(case, device)
    cfg = load_cfg(CONFIGS / f"{case.config}.yaml", ["RUNTIME.LOG_SPECTRUM", 1])
    model = build_model(cfg).to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    seconds, looking = interleave([step, lambda: singular_values(model, cfg, 1)], case.repeats, device)
    epoch = seconds * (images // case.batch)
    share = f"{100 * looking / epoch:.2f} % of an epoch"
    return Row(case.config, 1e3 * epoch, 1e3 * looking, epoch / looking, 50, "ms", share)


def main() -> None:
    args = make_parser(__doc__ or "").parse_args()
    device = torch.device(args.device)
    report("spectrum", [row(*case, device) for case in CASES[: QUICK if args.quick else None]], args.json)


if __name__ == "__main__":
    main()
