"""Time the penalty with its gradient, and measure its rounding error in float32.

python -m benchmarks.penalty                      networks, and single kernels of many shapes
python -m benchmarks.penalty --scaling FILE.png   the time against width and depth, as a figure (needs matplotlib)
python -m benchmarks.penalty --survey             single kernels of 168 shapes, the smallest speedup first

The definition (``isonet.ortho``) computes kernels of four taps and more on an axis without a stride.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.baseline import baseline_penalty
from benchmarks.common import Row, check_equal, faster, interleave, make_parser, report
from isonet import build_model, load_cfg
from isonet.fast_penalty import OrthoPenalty
from isonet.training.devices import set_precision

CONFIGS = Path(__file__).parent.parent / "configs"
# config: (goal, repetitions)
NETWORKS = {
    "IN1k-ISO18": (3.5, 3),
    "IN1k-ISO34": (3.5, 3),
    "IN1k-RISO50": (3.0, 3),
    "cifar10_ISO56": (2.5, 25),
    "cifar10_ISO110": (2.5, 15),
}
QUICK = ("IN1k-ISO18", "cifar10_ISO56")
# in, out, kernel, stride
KERNELS = [
    (16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (64, 64, 3, 1), (64, 128, 3, 2), (128, 128, 3, 1), (256, 256, 3, 1),
    (512, 512, 3, 1), (256, 512, 3, 2), (64, 64, 1, 1), (64, 256, 1, 1), (256, 512, 1, 2), (1024, 256, 1, 1),
    (16, 16, 5, 1), (64, 64, 5, 1), (64, 192, 5, 2), (32, 32, 9, 2), (8, 16, 11, 1), (4, 4, 31, 1), (16, 1024, 3, 1),
]  # fmt: skip
WIDTHS = (64, 128, 256, 512, 1024)
DEPTHS = (20, 56, 110, 218, 434, 1202)


def run(penalty: Callable[[], Tensor], module: nn.Module) -> Callable[[], Tensor]:
    """Return a function that computes ``penalty`` and its gradient, and returns the penalty."""

    def forward_backward() -> Tensor:
        module.zero_grad()
        value = penalty()
        value.backward()
        return value.detach()

    return forward_backward


def compare(module: nn.Module, work: str, repeats: int, goal: float | None, device: torch.device) -> Row:
    module = module.to(device)
    with torch.no_grad():  # moves the weights from the delta initialisation, where the penalty is 0
        for parameter in module.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    plan = OrthoPenalty(module)
    variants = [run(lambda: baseline_penalty(module), module), run(plan, module)]
    check_equal(work, [variants[0]().item()], [variants[1]().item()], 1e-5)
    exact = copy.deepcopy(module).double()
    run(lambda: baseline_penalty(exact), exact)()
    true, gradients = gradient(exact), [gradient(module, variant) for variant in variants]
    theirs, ours = (((g - true).norm() / true.norm()).item() for g in gradients)
    if not (gradients[0] - gradients[1]).norm() <= 1e-5 * true.norm():
        raise SystemExit(f"{work}: the gradients differ by more than 1e-5 of their norm")
    note = f"rounding error of the gradient: {ours:.1e} (baseline: {theirs:.1e})"
    return faster(work, interleave(variants, repeats, device), goal, note)


def gradient(module: nn.Module, variant: Callable[[], object] | None = None) -> Tensor:
    """Call ``variant`` if it is given, and return the gradients of all parameters as one float64 vector."""
    if variant:
        variant()
    return torch.cat([p.grad.double().flatten() for p in module.parameters() if p.grad is not None])


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--scaling", type=Path, metavar="PNG", help="draw the time against width and depth")
    parser.add_argument("--survey", action="store_true", help="time single kernels of many shapes instead")
    args = parser.parse_args()
    device = torch.device(args.device)
    set_precision(deterministic=False, tf32=False)  # otherwise a GPU computes the baseline in TF32, with another result
    torch.manual_seed(0)
    if args.scaling:
        scaling(args.scaling, args.json, device)
        return
    if args.survey:
        report("penalty of single kernels, the slowest tenth", survey(args.repeats or 15, device), args.json)
        return
    rows = []
    for name in QUICK if args.quick else NETWORKS:
        goal, repeats = NETWORKS[name]
        model = build_model(load_cfg(CONFIGS / f"{name}.yaml"))
        rows.append(compare(model, name, args.repeats or (min(repeats, 9) if args.quick else repeats), goal, device))
    for c_in, c_out, kernel, stride in [] if args.quick else KERNELS:
        work = f"{c_in} to {c_out}, {kernel}x{kernel}" + (f", stride {stride}" if stride > 1 else "")
        rows.append(compare(nn.Conv2d(c_in, c_out, kernel, stride), work, args.repeats or 15, None, device))
    report("penalty, forward and backward", rows, args.json)


def survey(repeats: int, device: torch.device) -> list[Row]:
    """Return the tenth of all shapes with the smallest speedup."""
    widths = [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (16, 256), (256, 32)]
    shapes = list(itertools.product(widths, (1, 2, 3, 4, 5, 6, 9), (1, 2, 3)))
    rows = [
        compare(nn.Conv2d(*width, kernel, stride), f"{width[0]} to {width[1]}, {kernel}x{kernel}, stride {stride}",
                repeats, None, device)
        for width, kernel, stride in shapes
    ]  # fmt: skip
    return sorted(rows, key=lambda row: row.ratio or 0)[: len(rows) // 10]


def scaling(picture: Path, file: Path | None, device: torch.device) -> None:
    """Time single 3x3 kernels by width and CIFAR networks by depth, and draw both."""
    kernels = {width: nn.Conv2d(width, width, 3, bias=False) for width in WIDTHS}
    by_width = [compare(k, f"width {w}", 3 if w > 256 else 7, None, device) for w, k in kernels.items()]
    by_depth = []
    for depth in DEPTHS:
        model = build_model(load_cfg(CONFIGS / "cifar10_ISO56.yaml", ["ISON.DEPTH", depth]))
        by_depth.append(compare(model, f"depth {depth}", 5, None, device))
    report("penalty by width and depth", by_width + by_depth, file)
    from benchmarks.plot import draw_scaling

    draw_scaling(dict(zip(WIDTHS, by_width, strict=True)), dict(zip(DEPTHS, by_depth, strict=True)), picture)


if __name__ == "__main__":
    main()
