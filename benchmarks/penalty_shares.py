"""Time the share of each rank when several ranks share the penalty and its gradient.

python -m benchmarks.penalty_shares

The baseline is the whole penalty. The shares are timed one after another, each with the whole machine to itself, as
if each rank had its own machine. The note has the costliest share divided by the mean share, also for more ranks than
are timed.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.common import Row, check_equal, interleave, make_parser, report
from benchmarks.penalty import CONFIGS, run
from isonet import build_model, load_cfg
from isonet.convs import shape_of
from isonet.fast_penalty import OrthoPenalty
from isonet.fast_penalty.gram import Grams
from isonet.fast_penalty.plan import deal_out
from isonet.ortho import penalised_convs
from isonet.shares import Share

NETWORKS = {"IN1k-RISO50": 3, "IN1k-ISO18": 3, "cifar10_ISO110": 15}  # config: repetitions
QUICK = ("cifar10_ISO110",)
TIMED = (1, 2, 4)
DEALT = (2, 4, 8, 64)


def unevenness(module: nn.Module, parts: int) -> float:
    """Return the costliest share divided by the mean share. The same costs determine the layers of each rank."""
    costs = [sum(Grams(shape_of(conv)).cost() for _, conv in part) for part in deal_out(penalised_convs(module), parts)]
    return max(costs) * parts / sum(costs)


def compare(name: str, repeats: int, device: torch.device) -> list[Row]:
    model = build_model(load_cfg(CONFIGS / f"{name}.yaml")).to(device)
    with torch.no_grad():  # moves the weights from the delta initialisation, where the penalty is 0
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    shares = [Share(index, parts) for parts in TIMED for index in range(parts)]
    variants = [run(OrthoPenalty(model, share), model) for share in shares]
    values = [variant().item() for variant in variants]
    seconds = dict(zip(shares, interleave(variants, repeats, device), strict=True))
    rows, whole = [], seconds[Share()]
    for parts in TIMED:
        own = [i for i, share in enumerate(shares) if share.parts == parts]
        check_equal(name, [values[0]], [sum(values[i] for i in own)], 1e-5)
        times = [seconds[shares[i]] for i in own]
        each = ", ".join(f"{1e3 * t:.1f}" for t in times)
        dealt = ", ".join(f"{unevenness(model, n):.2f} with {n}" for n in DEALT)
        note = f"{each} ms per process" if parts > 1 else f"costliest share over the mean: {dealt} processes"
        work = f"{name}, {parts} process{'es' if parts > 1 else ''}"
        rows.append(Row(work, 1e3 * whole, 1e3 * max(times), whole / max(times), None, "ms", note))
    return rows


def main() -> None:
    args = make_parser(__doc__ or "").parse_args()
    torch.manual_seed(0)
    rows = []
    for name in QUICK if args.quick else NETWORKS:
        rows += compare(name, args.repeats or NETWORKS[name], torch.device(args.device))
    report("penalty shared by ranks, time of the slowest process", rows, args.json)


if __name__ == "__main__":
    main()
