"""Time evaluation.

python -m benchmarks.evaluate
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch

from benchmarks.baseline import baseline_evaluation, published_form_
from benchmarks.common import Row, check_equal, faster, has_16_bit_arithmetic, interleave, make_parser, report
from isonet import build_model, load_cfg
from isonet.training import evaluate
from isonet.training.devices import place
from isonet.training.optim import Amp

CONFIGS = Path(__file__).parent.parent / "configs"
BATCH = 50
# amp, compiled, goal
CASES = [("off", False, 1.5), ("off", True, None), ("bf16", False, 3.0)]


def main() -> None:
    args = make_parser(__doc__ or "").parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = build_model(load_cfg(CONFIGS / "IN1k-RISO18.yaml", ["ISON.RES_MULTIPLIER", 0.2])).to(device).eval()
    images = torch.randn(BATCH, 3, 224, 224, device=device)
    labels = torch.randint(1000, (BATCH,), device=device)
    published = published_form_(copy.deepcopy(model))
    ready = [(images.contiguous(memory_format=torch.channels_last), labels)]
    rows = []
    for amp, compiled, goal in CASES:
        work = f"IN1k-RISO18 batch {BATCH}, {'float32' if amp == 'off' else amp}{', compiled' if compiled else ''}"
        if amp != "off" and not has_16_bit_arithmetic(device):
            rows.append(Row(work, None, None, None, goal, "", "not run: this CPU has no 16-bit arithmetic"))
            continue
        if compiled and args.quick:
            continue
        forward = place(copy.deepcopy(model), [device], channels_last=True, compiled=compiled)
        variants = [
            functools.partial(baseline_evaluation, published, [(images, labels)]),
            functools.partial(_ours, forward, ready, device, Amp(amp, device)),
        ]
        check_equal(work, variants[0](), variants[1](), 1e-5 if amp == "off" else 0.05)
        rows.append(faster(work, interleave(variants, args.repeats or (3 if args.quick else 7), device), goal))
    report("evaluation", rows, args.json, overrides="RUNTIME.CHANNELS_LAST True")


def _ours(forward: torch.nn.Module, batches: list, device: torch.device, amp: Amp) -> tuple[float, float]:
    result = evaluate(forward, batches, device, amp)
    return result.loss, result.top1 / 100


if __name__ == "__main__":
    main()
