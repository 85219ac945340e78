"""The device against the CPU: logits, penalty, and three steps of every family of networks."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import Row
from benchmarks.gpu.jobs import NOT_RUN, Job, difference, remark
from benchmarks.gpu.reference import NUMERICS, options, reference_batch, reference_model
from isonet import load_cfg, ortho_penalty
from isonet.training import TrainStep, build_optimizer, learning_rate_at, set_learning_rate
from isonet.training.devices import place, set_precision
from isonet.training.optim import Amp

CPU = torch.device("cpu")
BEFORE, AFTER = 1e-5, 1e-4  # tolerances before the first update, and after three of them
RECIPE = ["SOLVER.BASE_LR", 0.01, "SOLVER.WARMUP", True, "SOLVER.WARMUP_EPOCH", 5]  # of the reference figures
TOY = ("cifar10_ISO20", "cifar10_RES20")


@dataclass(frozen=True)
class Setting:
    """What a run may choose for speed."""

    name: str
    amp: str = "off"
    tf32: bool = False
    channels_last: bool = False
    compiled: bool = False
    deterministic: bool = False


EXACT = Setting("float32")
FAST = [
    Setting("channels last", channels_last=True),
    Setting("TF32", tf32=True, channels_last=True),
    Setting("bf16", amp="bf16", channels_last=True),
    Setting("fp16", amp="fp16", channels_last=True),
]
DETERMINISTIC = Setting("deterministic", deterministic=True)
COMPILED = [
    Setting("float32, compiled", channels_last=True, compiled=True),
    Setting("bf16, compiled", amp="bf16", channels_last=True, compiled=True),
]


@dataclass(frozen=True)
class Figures:
    """The results of a network: of the weights as filled, and of three steps of the reference's recipe.

    losses: cross entropy + coefficient * penalty before each step. last: the logits after the third step.
    """

    logits: Tensor
    penalty: Tensor
    losses: Tensor
    last: Tensor


def figures(name: str, device: torch.device, setting: Setting = EXACT) -> Figures:
    """Compute the figures of a network of the reference on ``device``. They are float64 tensors on the CPU."""
    set_precision(setting.deterministic, setting.tf32)
    model, coeff = reference_model(name), NUMERICS[name]["ortho_coeff_used"]
    cfg, amp = load_cfg(None, options(NUMERICS[name]["config"]) + RECIPE), Amp(setting.amp, device)
    forward = place(model, [device], setting.channels_last, setting.compiled)
    images, labels = (tensor.to(device) for tensor in reference_batch(name))
    if setting.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    logits = evaluated(model, images, amp)
    with torch.no_grad():
        penalty = ortho_penalty(model).double().cpu()
    optimizer, losses = build_optimizer(model, cfg), []
    step = TrainStep(forward, model.train(), optimizer, coeff, amp=amp)
    for epoch in (1, 2, 3):
        set_learning_rate(optimizer, learning_rate_at(cfg, epoch))
        out = step(images, labels)
        losses.append((out.cross_entropy + coeff * out.penalty).double().cpu())
    return Figures(logits, penalty, torch.stack(losses), evaluated(model, images, amp))


@torch.no_grad()
def evaluated(model: nn.Module, images: Tensor, amp: Amp) -> Tensor:
    with amp.autocast():
        return model.eval()(images).double().cpu()


@functools.cache
def on_cpu(name: str, onednn: bool = True) -> Figures:
    """Return the figures of the CPU, whose convolutions oneDNN computes, or else torch's own code."""
    with torch.backends.mkldnn.flags(enabled=onednn):
        return figures(name, CPU)


def distance(ours: Tensor, true: Tensor) -> float:
    """Return the distance of two tensors, relative to the second. A penalty of 0 must be 0."""
    return ((ours - true).norm() / true.norm().clamp_min(1e-12)).item()


def distances(ours: Figures, true: Figures) -> tuple[dict[str, float], dict[str, float]]:
    """Return the relative differences before the first update, and those of the steps after it."""
    before = {
        "logits": distance(ours.logits, true.logits),
        "penalty": distance(ours.penalty, true.penalty),
        "loss": distance(ours.losses[0], true.losses[0]),
    }
    return before, {"losses": distance(ours.losses, true.losses), "logits": distance(ours.last, true.last)}


def published(name: str) -> Figures:
    """Return the stored figures of the published code. They have the first eight logits of each image."""
    record = NUMERICS[name]
    values = ("logits_first8", "ortho", "sgd3_losses", "sgd3_logits_first8")
    return Figures(*(torch.tensor(record[key], dtype=torch.double) for key in values))


def as_note(values: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.0e}" for key, value in values.items())


def exact(name: str, device: torch.device, _until: float) -> Iterator[Row]:
    """Compare a network on ``device`` in float32 with the CPU and with the published code.

    In a network with ReLUs, the order of a sum decides the sign of an input that is close to zero, and three steps can
    differ by more than their tolerance. The note then says by how much two libraries of the CPU differ.
    """
    ison = load_cfg(None, options(NUMERICS[name]["config"])).ISON
    relus = ison.HAS_ST or not ison.SReLU
    found = figures(name, device)
    first8 = Figures(found.logits[:, :8], found.penalty, found.losses, found.last[:, :8])
    cpu, theirs = distances(found, on_cpu(name)), distances(first8, published(name))
    for at, when, tolerance in ((0, "logits, penalty and loss", BEFORE), (1, "three steps", AFTER)):
        values, note = list(cpu[at].values()), as_note(cpu[at])
        if at and relus:
            between = distances(on_cpu(name, onednn=False), on_cpu(name))[at]
            note += f"; with and without oneDNN the CPU differs by: {as_note(between)}"
        else:
            values += theirs[at].values()
            note += f"; from the published figures: {as_note(theirs[at])}"
        largest = max(values) if all(map(math.isfinite, values)) else math.nan
        yield difference(f"float32 equals the CPU: {name}, {when}", largest, tolerance, note)


def fast(name: str, device: torch.device, settings: Iterable[Setting], _until: float) -> Iterator[Row]:
    """Measure how far the settings for speed are from float32 on the CPU."""
    for setting in settings:
        work = f"{setting.name} from the CPU's float32: {name}, logits after three steps"
        if reason := missing(setting, device):
            yield remark(work, f"{NOT_RUN} {reason}")
            continue
        before, after = distances(figures(name, device, setting), on_cpu(name))
        yield difference(work, after["logits"], None, f"before: {as_note(before)}; after: {as_note(after)}")


def missing(setting: Setting, device: torch.device) -> str:
    """Return why a setting cannot be used, or ""."""
    if setting.amp == "fp16" and device.type == "cpu":
        return "torch has no fast convolutions in fp16 for CPUs"
    return missing_compiler(device) if setting.compiled else ""


def missing_compiler(device: torch.device) -> str:
    """Return why ``torch.compile`` cannot work here, or "". For CPUs it compiles C++; for GPUs, Triton compiles C."""
    on_gpu = device.type == "cuda"
    if on_gpu and not importlib.util.find_spec("triton"):
        return "torch.compile needs the package triton"
    named, known = ("CC", ("gcc", "clang")) if on_gpu else ("CXX", ("g++", "clang++"))
    if not os.environ.get(named) and not any(map(shutil.which, known)):
        return f"torch.compile needs {' or '.join(known)}, and neither exists"
    if on_gpu and not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "torch.compile needs Python.h, such as the package python3-dev has it"
    return ""


def repeatable(name: str, device: torch.device, _until: float) -> Iterator[Row]:
    """Take three steps twice with deterministic kernels, and compare all figures to the bit."""
    first, second = (torch.cat([f.logits.flatten(), f.losses, f.last.flatten()])
                     for f in (figures(name, device, DETERMINISTIC) for _ in range(2)))  # fmt: skip
    set_precision(deterministic=False, tf32=False)
    work = f"RUNTIME.DETERMINISTIC repeats three steps: {name}"
    yield difference(work, float((first != second).sum()), 0.0, f"of {len(first):,} logits and losses", "numbers")


def jobs(device: torch.device, toy: bool) -> list[Job]:
    """Return the comparisons with the CPU."""
    names, small = TOY if toy else NUMERICS, "cifar10_ISO20"
    far = TOY[:1] if toy else ("cifar10_ISO56", "IN1k_RISO50")
    return [
        *(Job(f"float32 equals the CPU: {name}", partial(exact, name, device), 3) for name in names),
        *(Job(f"fast settings: {name}", partial(fast, name, device, FAST), 5) for name in far),
        Job(f"compiled: {small}", partial(fast, small, device, COMPILED), 60),
    ]


def repeat_jobs(device: torch.device, toy: bool) -> list[Job]:
    """Return the comparisons of two repetitions."""
    names = TOY[:1] if toy else ("cifar10_ISO56", "IN1k_RISO50")
    return [Job(f"RUNTIME.DETERMINISTIC: {name}", partial(repeatable, name, device), 3) for name in names]
