"""Time and memory of a training step as the network, the images and the batch grow, in the published form and in ours.

The networks are ISONets without dropout. The learning rate is 0, so that no step changes what the next one computes.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.baseline import baseline_optimizer, baseline_step, published_form_
from benchmarks.common import Row, check_equal, faster, interleave
from benchmarks.memory import in_new_process, measure
from isonet import build_model, load_cfg
from isonet.config import uses_channels_last
from isonet.depths import stage_depths
from isonet.models.build import init_network_
from isonet.models.isonet import Architecture, BasicTransform, ISONet
from isonet.models.layers import LayerFactory
from isonet.training import TrainStep, build_optimizer
from isonet.training.devices import place

CONFIGS = Path(__file__).parent.parent / "configs"
VARIANTS = ("published", "ours")
LABELS = {"ms": "time", "MiB": "peak memory"}  # what a row measures, by its unit


@dataclass(frozen=True)
class Point:
    """A network and a batch. width: the channels of the first stage of a CIFAR network, 16 as published."""

    config: str
    batch: int
    size: int
    depth: int
    width: int = 16


@dataclass(frozen=True)
class Axis:
    """What grows: a field of ``Point``, its values, those of the short form, and what stays the same, in words."""

    field: str
    base: Point
    values: Sequence[int]
    quick: Sequence[int]
    title: str


AXES = (
    Axis("depth", Point("cifar10_ISO56", 16, 32, 56), (20, 56, 110, 308, 1202), (20, 110), "CIFAR ISONet, batch 16"),
    Axis("width", Point("cifar10_ISO56", 16, 32, 20), (16, 32, 64, 128), (16, 64), "CIFAR ISONet-20, batch 16"),
    Axis("size", Point("IN1k-ISO18", 4, 224, 18), (64, 112, 224, 448), (64, 224), "ImageNet ISONet-18, batch 4"),
    Axis("batch", Point("cifar10_ISO56", 8, 32, 56), (8, 32, 128, 512), (8, 128), "CIFAR ISONet-56"),
)


def step(variant: str, point: Point, device: torch.device) -> Callable[[], tuple[float, float]]:
    """Return a function that takes a step on a fixed batch and returns cross entropy and penalty."""
    torch.manual_seed(0)
    cfg = load_cfg(CONFIGS / f"{point.config}.yaml", ["ISON.DROPOUT", False, "ISON.DEPTH", point.depth])
    if point.width == 16:
        model = build_model(cfg).to(device).train()
    else:
        depths, widths = stage_depths(point.depth, "basic_transform", False), [point.width * 2**n for n in range(3)]
        layers = LayerFactory(batch_norm=False, srelu=True, shortcuts=False, multiplier=None)
        model = ISONet(Architecture(BasicTransform, depths, widths, point.width, False), layers, 10, 0.0)
        init_network_(model)
        model = model.to(device).train()
    published = variant == "published"
    optimizer = baseline_optimizer(model, cfg) if published else build_optimizer(model, cfg)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    images = torch.randn(point.batch, 3, point.size, point.size, device=device)
    labels = torch.randint(cfg.DATASET.NUM_CLASSES, (point.batch,), device=device)
    coeff = cfg.ISON.ORTHO_COEFF
    if published:
        published_form_(model)
        return lambda: baseline_step(model, optimizer, images, labels, coeff)[:2]
    channels_last = uses_channels_last(cfg, device.type)
    ours = TrainStep(place(model, [device], channels_last), model, optimizer, coeff)
    images = images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def take() -> tuple[float, float]:
        out = ours(images, labels)
        return out.cross_entropy.item(), out.penalty.item()

    return take


def memory(variant: str, point: Point, device: torch.device) -> float:
    """Return the peak memory in MiB of the network, its optimizer and two steps."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _two_steps(variant, point, device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return in_new_process(_memory_here, variant, point)


def _memory_here(variant: str, point: Point) -> float:
    device = torch.device("cpu")
    _two_steps(variant, Point("cifar10_ISO56", 1, 32, 8), device)  # so that the code of torch is in memory
    return measure(lambda: _two_steps(variant, point, device))[1]


def _two_steps(variant: str, point: Point, device: torch.device) -> Callable[[], tuple[float, float]]:
    take = step(variant, point, device)
    take()
    take()
    return take


def growth_rows(axes: Sequence[Axis], quick: bool, repeats: int, device: torch.device) -> list[Row]:
    """Return the rows of ``axes``: the time and memory at each value, and the exponents with which they grow."""
    rows = []
    for axis in axes:
        for value in axis.quick if quick else axis.values:
            point, work = Point(**{**asdict(axis.base), axis.field: value}), f"{axis.field} {value}"
            both = [step(variant, point, device) for variant in VARIANTS]
            check_equal(work, both[0](), both[1](), 1e-5)
            rows.append(faster(work, interleave(both, repeats, device), None, axis.title))
            del both
            print(f"{work}: {rows[-1].ratio:.2f}", file=sys.stderr)
            before, now = (memory(variant, point, device) for variant in VARIANTS)
            rows.append(Row(work, before, now, before / now, None, "MiB", axis.title))
        for unit, curve in curves(rows, axis.field).items():
            before, now = (exponent(curve, variant) for variant in VARIANTS)
            note = f"y = x^p between the last two points, {' and '.join(map(str, list(curve)[-2:]))}"
            rows.append(Row(f"{axis.field}: exponent p of {LABELS[unit]}", before, now, None, None, "", note))
    return rows


Curve = dict[int, Row]


def curves(rows: Sequence[Row], field: str) -> dict[str, Curve]:
    """Return the rows of an axis by their unit, ms or MiB, and by their value."""
    found: dict[str, Curve] = {}
    for row in rows:
        if match := re.fullmatch(rf"{field} (\d+)", row.work):
            found.setdefault(row.unit, {})[int(match[1])] = row
    return found


def values_of(curve: Curve, variant: str) -> list[float]:
    return [(row.baseline if variant == "published" else row.value) or math.nan for row in curve.values()]


def exponent(curve: Curve, variant: str) -> float:
    """Return the exponent p of y ~ x^p between the last two points."""
    (x1, x2), (y1, y2) = list(curve)[-2:], values_of(curve, variant)[-2:]
    return math.log(y2 / y1) / math.log(x2 / x1)
