"""Count denormal numbers, which are slow on a CPU, in the near-zero residual branches of R-ISONet.

python -m benchmarks.denormals
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.common import Row, faster, interleave, make_parser, report
from isonet import build_model, load_cfg
from isonet.training import TrainStep, build_optimizer

BATCH = 128
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def count(tensor: Tensor) -> tuple[int, int]:
    """Return the number of denormals in ``tensor``, and its size."""
    return int(((tensor != 0) & (tensor.abs() < SMALLEST_NORMAL)).sum()), tensor.numel()


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--depth", type=int, default=20, help="depth of the CIFAR R-ISONet (default: 20)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # flushing is a setting of the calling thread only
    torch.manual_seed(0)
    cfg = load_cfg(None, ["DATASET.NAME", "CIFAR10", "DATASET.NUM_CLASSES", 10, "ISON.DEPTH", args.depth, "ISON.HAS_ST",
                          True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.0])  # fmt: skip
    model = build_model(cfg).train()
    step = TrainStep(model, model, build_optimizer(model, cfg), 1e-4)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    activations: list[tuple[int, int]] = []
    hooks = [
        conv.register_forward_hook(lambda _module, _inputs, output: activations.append(count(output)))
        for conv in model.modules()
        if isinstance(conv, nn.Conv2d)
    ]
    for _ in range(4):
        step(images, labels)
    for hook in hooks:
        hook.remove()
    gradients = [count(p.grad) for p in model.parameters() if p.grad is not None]
    denormals = {
        kind: f"{sum(d for d, _ in counts):,} of {sum(n for _, n in counts):,}"
        for kind, counts in (("activations", activations), ("gradients", gradients))
    }

    def with_flush(flush: bool) -> None:
        torch.set_flush_denormal(flush)
        step(images, labels)
        torch.set_flush_denormal(False)

    seconds = interleave([lambda: with_flush(False), lambda: with_flush(True)], args.repeats or 7, torch.device("cpu"))
    rows: list[Row] = [faster(f"R-ISONet-{args.depth}, without and with denormals flushed", seconds, None)]
    report("denormals", rows, args.json, **denormals)


if __name__ == "__main__":
    main()
