"""Multiply-accumulates of a network and of its penalty, for ``flopscount_iso.py``.

The network runs on a batch of no images: every operator reports its shapes and computes nothing, and hooks count the
convolutions and the linear layer. A FLOP is a multiplication or an addition, so FLOPs = 2 x MACs. The backward pass of
a layer computes two products of the forward pass's size. The first layer computes only one of them, because images need
no gradient. ``torch.utils.flop_counter`` gives the same numbers (tests/tools/test_flops.py), but the imports that it
needs take longer than ``import torch``.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from isonet.config import image_size
from isonet.convs import shape_of
from isonet.fast_penalty.gram import Grams
from isonet.files.storage import write_file
from isonet.hooks import hooked
from isonet.models import ISONet
from isonet.models.build import assemble
from isonet.ortho import penalised_convs
from isonet.tools.summary import text_table


@dataclass(frozen=True)
class Stage:
    """One part of the network per image. shape: the output shape, (channels, height, width), or (classes,)."""

    name: str
    shape: list[int]
    params: int
    macs: int
    flops: int


@dataclass(frozen=True)
class FlopCount:
    """The counts of a config. macs: the forward pass of one image. The counts of a step: forward and backward pass."""

    input: list[int]
    params: int
    macs: int
    flops: int
    stages: list[Stage]
    penalty_macs: int  # one evaluation as this code computes it
    penalty_macs_half_offsets: int  # as a sum over half of the offsets, without padded taps
    penalty_macs_published: int  # as a padded convolution of each kernel with itself
    batch_size: int
    network_step_macs: int  # one training step on one GPU's batch, without the penalty
    penalty_step_macs: int  # the penalty in that step; 0 if its coefficient is 0
    penalty_share: float  # penalty_step_macs as a fraction of both together


def count_flops(cfg: CfgNode) -> FlopCount:
    """Count the network of ``cfg`` and its penalty. Raises ``ConfigError`` if there is no such network."""
    with torch.device("meta"):  # no weights are drawn
        model = assemble(cfg)
    # No code accesses this memory; Module.to_empty has the same effect, but imports sympy
    memory = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(memory, assign=True)
    stages, stem_macs = _count_stages(model.eval(), image_size(cfg))
    macs = sum(stage.macs for stage in stages)
    all_grams = [Grams(shape_of(conv), cfg.ISON.ORTHO_STRIDED) for _, conv in penalised_convs(model)]
    penalty_macs, penalty_gradient = (sum(macs) for macs in zip(*map(_macs_at_points, all_grams), strict=True))
    network_step = cfg.SOLVER.TRAIN_BATCH_SIZE * (3 * macs - stem_macs)
    penalty_step = round((penalty_macs + penalty_gradient) / cfg.ISON.ORTHO_EVERY) if cfg.ISON.ORTHO_COEFF > 0 else 0
    return FlopCount(
        input=[3, image_size(cfg), image_size(cfg)],
        params=sum(stage.params for stage in stages),
        macs=macs,
        flops=2 * macs,
        stages=stages,
        penalty_macs=penalty_macs,
        penalty_macs_half_offsets=sum(map(_macs_by_offset, all_grams)),
        penalty_macs_published=sum(map(_published_macs, all_grams)),
        batch_size=cfg.SOLVER.TRAIN_BATCH_SIZE,
        network_step_macs=network_step,
        penalty_step_macs=penalty_step,
        penalty_share=penalty_step / (network_step + penalty_step),
    )


def format_table(count: FlopCount) -> str:
    """Return the count as a table and three sentences."""
    header = ("stage", "output", "parameters", "MACs", "FLOPs")
    stages = [*count.stages, Stage("total", [], count.params, count.macs, count.flops)]
    rows = [(s.name, "x".join(map(str, s.shape)), f"{s.params:,}", f"{s.macs:,}", f"{s.flops:,}") for s in stages]
    head, *body, total = text_table(header, rows, left=2).splitlines()
    rule = "-" * len(head)
    return "\n".join(
        [
            f"one image of {'x'.join(map(str, count.input))}, forward; FLOPs = 2 x MACs",
            head, rule, *body, rule, total, "",
            f"penalty, one evaluation: {count.penalty_macs:,} MACs "
            f"(summed over half of the offsets: {count.penalty_macs_half_offsets:,}; "
            f"as a padded convolution, the published way: {count.penalty_macs_published:,})",
            f"training step, {count.batch_size} images, forward and backward: "
            f"network {count.network_step_macs:,} MACs, penalty {count.penalty_step_macs:,} MACs",
            f"share of the penalty in the step: {100 * count.penalty_share:.1f} %",
        ]
    )  # fmt: skip


def write_count(count: FlopCount, folder: Path) -> None:
    """Write ``flops.json`` and the table ``flops.txt`` to ``folder``, which is created if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "flops.json", json.dumps(asdict(count), indent=2) + "\n")
    write_file(folder / "flops.txt", format_table(count) + "\n")


def _count_stages(model: ISONet, size: int) -> tuple[list[Stage], int]:
    """Return the parts of ``model`` for images of ``size`` pixels a side, and the MACs of its first convolution."""
    shapes: dict[nn.Module, list[int]] = {}  # the shape of each output, without the batch
    macs: dict[nn.Module, int] = {}

    def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        shapes[module] = list(output.shape[1:])
        if isinstance(module, nn.Conv2d | nn.Linear):
            macs[module] = module.weight.numel() * output.shape[2:].numel()  # each weight once per position

    with torch.no_grad(), hooked(module.register_forward_hook(count) for module in model.modules()):
        model(torch.empty(0, 3, size, size))
    stages = []
    for name, part in model.named_children():
        part_macs = sum(macs.get(module, 0) for module in part.modules())
        params = sum(p.numel() for p in part.parameters())
        stages.append(Stage(name, shapes[part], params, part_macs, 2 * part_macs))
    return stages, macs[model.stem.conv]


def _macs_at_points(grams: Grams) -> tuple[int, int]:
    """Return the MACs of one kernel's penalty and of its gradient at points, which all kernels of our networks have."""
    value, gradient = grams.points().macs(grams.rows, grams.columns)
    return grams.conv.groups * value, grams.conv.groups * gradient


def _macs_by_offset(grams: Grams) -> int:
    """Return the MACs of the penalty as a sum over half of the offsets, with a product for each pair of taps there."""
    axes = zip(grams.conv.kernel, grams.conv.step, strict=True)
    # Pairs of taps whose distance is an offset that counts, on all axes
    pairs = math.prod(sum(k - abs(d) for d in range(1 - k, k) if d % step == 0) for k, step in axes)
    # Opposite offsets count as one; at offset zero, each tap forms a pair with itself
    half = (pairs + math.prod(grams.conv.kernel)) // 2
    return half * grams.conv.groups * grams.rows**2 * grams.columns


def _published_macs(grams: Grams) -> int:
    """Return the MACs of the published penalty: a convolution of the kernel with itself, padded by k - 1."""
    channels = grams.conv.out_channels, grams.conv.in_channels
    positions = math.prod((2 * k - 2) // s + 1 for k, s in zip(grams.conv.kernel, grams.conv.stride, strict=True))
    return positions * math.prod(grams.conv.kernel) * min(channels) ** 2 * max(channels)
