"""Multiply-accumulates of a network and of its penalty: what ``flopscount_iso.py`` does.

The forward pass and the published penalty are counted by ``torch.utils.flop_counter`` on the meta
device, where tensors have shapes and no values: the operators that really run, without weights, data or
a GPU. Convolutions and matrix products count; a FLOP is a multiplication or an addition, so that FLOPs
= 2 x MACs. The backward pass of a layer is two products of its size, of the first layer one, since images
need no gradient.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from yacs.config import CfgNode

from isonet.config import image_size
from isonet.convs import shape_of
from isonet.errors import UserError
from isonet.fast_penalty.gram import Grams
from isonet.models import ISONet
from isonet.models.build import assemble
from isonet.ortho import penalised_convs


@dataclass(frozen=True)
class Stage:
    """One part of the network for one image. shape: channels, height, width of its output, or classes."""

    name: str
    shape: list[int]
    params: int
    macs: int
    flops: int


@dataclass(frozen=True)
class FlopCount:
    """macs: convolutions and linear layer, one image, forward. Steps: forward and backward."""

    input: list[int]
    params: int
    macs: int
    flops: int
    stages: list[Stage]
    penalty_macs: int  # one evaluation as this code computes it
    penalty_macs_half_offsets: int  # summed over half of the offsets, without padded taps
    penalty_macs_published: int  # as a padded convolution of each kernel with itself
    batch_size: int
    network_step_macs: int  # one training step on one GPU's batch, without the penalty
    penalty_step_macs: int  # the penalty's part of that step; 0 where its coefficient is 0
    penalty_share: float  # of the two together


def count_flops(cfg: CfgNode) -> FlopCount:
    """Count the network of ``cfg``. Raises ``ConfigError`` where there is none."""
    with torch.device("meta"):
        model = assemble(cfg)
        size = image_size(cfg)
        image = torch.empty(1, 3, size, size)
    stages, macs = _count_network(model.eval(), image)
    penalty_macs, penalty_gradient = _penalty_macs(model, cfg.ISON.ORTHO_STRIDED)
    batch_size = cfg.SOLVER.TRAIN_BATCH_SIZE
    image_gradient = _macs(lambda: model.stem.conv(image))  # the one product that the backward pass leaves out
    network_step = batch_size * (3 * macs - image_gradient)
    penalty_step = penalty_macs + penalty_gradient if cfg.ISON.ORTHO_COEFF > 0 else 0
    return FlopCount(
        input=list(image.shape[1:]),
        params=sum(p.numel() for p in model.parameters()),
        macs=macs,
        flops=2 * macs,
        stages=stages,
        penalty_macs=penalty_macs,
        penalty_macs_half_offsets=_penalty_macs_by_offset(model, cfg.ISON.ORTHO_STRIDED),
        penalty_macs_published=_published_penalty_macs(model),
        batch_size=batch_size,
        network_step_macs=network_step,
        penalty_step_macs=penalty_step,
        penalty_share=penalty_step / (network_step + penalty_step),
    )


def format_table(count: FlopCount) -> str:
    """The count for people."""
    rows = [("stage", "output", "parameters", "MACs", "FLOPs")]
    rows += [_row(s.name, "x".join(map(str, s.shape)), s.params, s.macs) for s in count.stages]
    rows.append(_row("total", "", count.params, count.macs))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join(
        [
            f"one image of {'x'.join(map(str, count.input))}, forward; FLOPs = 2 x MACs",
            lines[0], rule, *lines[1:-1], rule, lines[-1], "",
            f"penalty, one evaluation: {count.penalty_macs:,} MACs "
            f"(summed over half of the offsets: {count.penalty_macs_half_offsets:,}; "
            f"as a padded convolution, the published way: {count.penalty_macs_published:,})",
            f"training step, {count.batch_size} images, forward and backward: "
            f"network {count.network_step_macs:,} MACs, penalty {count.penalty_step_macs:,} MACs",
            f"share of the penalty in the step: {100 * count.penalty_share:.1f} %",
        ]
    )  # fmt: skip


def write_count(count: FlopCount, folder: Path) -> None:
    """Write ``flops.json`` and the table ``flops.txt`` to ``folder``, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "flops.json").write_text(json.dumps(asdict(count), indent=2) + "\n", encoding="utf-8")
        (folder / "flops.txt").write_text(format_table(count) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); see OUTPUT_DIR") from None


def _count_network(model: ISONet, image: Tensor) -> tuple[list[Stage], int]:
    """Stages, and the MACs of all of them."""
    shapes: dict[str, list[int]] = {}

    def remember(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: shapes.update({name: list(output.shape[1:])})

    hooks = [part.register_forward_hook(remember(name)) for name, part in model.named_children()]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    for hook in hooks:
        hook.remove()
    per_module = counter.get_flop_counts()
    stages = []
    for name, part in model.named_children():
        flops = sum(per_module[f"{type(model).__name__}.{name}"].values())
        stages.append(Stage(name, shapes[name], sum(p.numel() for p in part.parameters()), flops // 2, flops))
    return stages, counter.get_total_flops() // 2


def _published_penalty_macs(model: ISONet) -> int:
    """The cost of the published penalty: each kernel in a padded convolution with itself."""
    shapes = Counter((conv.weight.shape, conv.stride) for _, conv in penalised_convs(model))
    total = 0
    for (shape, stride), layers in shapes.items():
        wide, narrow = max(shape[:2]), min(shape[:2])
        weight = torch.empty(narrow, wide, *shape[2:], device="meta")
        padding = [k - 1 for k in shape[2:]]
        total += layers * _macs(functools.partial(F.conv2d, weight, weight, stride=stride, padding=padding))
    return total


def _penalty_macs(model: ISONet, strided: str) -> tuple[int, int]:
    """Of one evaluation of the penalty, and of its gradient.

    Told by the points that the penalty is computed at: the tests hold them against torch's counter,
    which needs half a second for these hundreds of small products.
    """
    value = gradient = 0
    for _, conv in penalised_convs(model):
        grams = Grams(shape_of(conv), strided)
        for_one = grams.points().macs(grams.rows, grams.columns)
        value += conv.groups * for_one[0]
        gradient += conv.groups * for_one[1]
    return value, gradient


def _penalty_macs_by_offset(model: ISONet, strided: str) -> int:
    """Of the penalty as a sum over half of the offsets, a product for each pair of taps that meet there."""
    total = 0
    for _, conv in penalised_convs(model):
        grams = Grams(shape_of(conv), strided)
        pairs = 1  # of taps whose distance is an offset that counts, on all axes
        for k, step in zip(grams.conv.kernel, grams.conv.step, strict=True):
            pairs *= sum(k - abs(d) for d in range(1 - k, k) if d % step == 0)
        # Opposite offsets are one; at offset zero each tap meets itself
        half = (pairs + math.prod(grams.conv.kernel)) // 2
        total += half * conv.groups * grams.rows**2 * grams.columns
    return total


def _macs(run: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def _row(name: str, shape: str, params: int, macs: int) -> tuple[str, str, str, str, str]:
    return name, shape, f"{params:,}", f"{macs:,}", f"{2 * macs:,}"
