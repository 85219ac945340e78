"""The training steps that the benchmarks time: networks, batches, settings, and the two formulations of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from yacs.config import CfgNode

from benchmarks.baseline import baseline_optimizer, baseline_step, published_form_
from isonet import build_model, load_cfg
from isonet.config import uses_channels_last
from isonet.config.kinds import AUTO
from isonet.models import ISONet
from isonet.training import TrainStep, build_optimizer
from isonet.training.devices import place
from isonet.training.optim import Amp

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass(frozen=True)
class Case:
    """A network and its batch, and the settings of this code. ``goal`` is the ratio to the published formulation.

    amp, tf32, channels_last: RUNTIME.AMP, TF32 and CHANNELS_LAST. every: ISON.ORTHO_EVERY.
    """

    config: str
    batch: int
    size: int
    amp: str = "off"
    compiled: bool = False
    goal: float | None = None
    repeats: int = 3
    channels_last: bool | str = AUTO
    every: int = 1
    tf32: bool = False

    @property
    def work(self) -> str:
        kind = self.amp if self.amp != "off" else "TF32" if self.tf32 else "float32"
        order = "" if self.channels_last == AUTO else f", CHANNELS_LAST {self.channels_last}"
        every = f", ORTHO_EVERY {self.every}" if self.every > 1 else ""
        return f"{self.config} batch {self.batch}, {kind}{order}{', compiled' if self.compiled else ''}{every}"

    def cfg(self) -> CfgNode:
        runtime = {"AMP": self.amp, "TF32": self.tf32, "CHANNELS_LAST": self.channels_last}
        opts = [word for key, value in runtime.items() for word in (f"RUNTIME.{key}", value)]
        return load_cfg(CONFIGS / f"{self.config}.yaml", ["ISON.DROPOUT", False, *opts])


ISO18 = Case("IN1k-ISO18", 16, 224, goal=2.0)
RISO50 = Case("IN1k-RISO50", 8, 224)
ISO56 = Case("cifar10_ISO56", 128, 32, goal=1.3, repeats=9)
DEFAULTS = [ISO18, RISO50, ISO56]

# The cases of each network share the baseline
ON_CPU = [
    [
        ISO18,
        replace(ISO18, amp="bf16", goal=3.0),
    ],
    [
        RISO50,
        replace(RISO50, amp="bf16"),
        replace(RISO50, amp="bf16", goal=4.5, every=4),
    ],
    [
        ISO56,
        replace(ISO56, compiled=True),
        replace(ISO56, amp="bf16", goal=1.6),
    ],
]
# How many times as fast as with the former default, RUNTIME.CHANNELS_LAST False, a default step must be
ORDER_GOALS = {"IN1k-ISO18": 1.08, "IN1k-RISO50": 1.05, "cifar10_ISO56": 1.2}
ON_GPU = [
    [Case("IN1k-RISO50", 64, 224, "bf16", compiled=True, goal=3.0, repeats=20)],
    [Case("cifar10_ISO56", 128, 32, "bf16", compiled=True, goal=5.0, repeats=50)],
]
RESNET_ON_CPU = Case("IN1k-RISO50", 16, 224)
RESNET_ON_GPU = Case("IN1k-RISO50", 64, 224, "bf16", compiled=True, goal=1.0, repeats=20)


def baseline(case: Case, device: torch.device) -> Callable[[], tuple[float, ...]]:
    """Return a function that takes a published step on a fixed batch and returns cross entropy and penalty."""
    model, images, labels = make(case, device)
    cfg = case.cfg()
    optimizer = baseline_optimizer(model, cfg)  # before the SReLUs, whose shifts have no decay, are replaced
    published_form_(model)
    return lambda: baseline_step(model, optimizer, images, labels, cfg.ISON.ORTHO_COEFF)[:2]


def ours(case: Case, device: torch.device) -> Callable[[], tuple[float, ...]]:
    """Return a function that takes ``case.every`` steps on a fixed batch, of which the last one has the penalty.

    It returns the cross entropy of the first step, and the penalty.
    """
    model, images, labels = make(case, device)
    cfg = case.cfg()
    channels_last = uses_channels_last(cfg, device.type)
    forward = place(model, [device], channels_last, case.compiled)
    optimizer, amp = build_optimizer(model, cfg), Amp(case.amp, device)
    step = TrainStep(forward, model, optimizer, cfg.ISON.ORTHO_COEFF, amp=amp)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    weights = [0] * (case.every - 1) + [case.every]

    def run() -> tuple[float, ...]:
        outputs = [step(images, labels, penalty_weight=weight) for weight in weights]
        return outputs[0].cross_entropy.item(), outputs[-1].penalty.item()

    return run


def make(case: Case, device: torch.device) -> tuple[ISONet, Tensor, Tensor]:
    """Return the network and the batch, images and labels. All variants of a case use the same ones."""
    torch.manual_seed(0)
    cfg = case.cfg()
    model = build_model(cfg).to(device).train()
    with torch.no_grad():  # away from the delta initialisation, close to which the penalty consists of rounding errors
        for parameter in model.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    images = torch.randn(case.batch, 3, case.size, case.size, device=device)
    labels = torch.randint(cfg.DATASET.NUM_CLASSES, (case.batch,), device=device)
    return model, images, labels


def resnet(case: Case, device: torch.device) -> Callable[[], float]:
    """Return a function that takes a step of torchvision's ResNet-50, set up as ``case``, and returns the loss."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().train()
    forward = place(model, [device], channels_last=True, compiled=case.compiled)
    optimizer = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=1e-4, fused=True)
    step = TrainStep(forward, model, optimizer, 0.0, amp=Amp(case.amp, device))
    images = torch.randn(case.batch, 3, case.size, case.size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.randint(1000, (case.batch,), device=device)
    return lambda: step(images, labels).cross_entropy.item()


def peak_on_gpu(build: Callable[[Case, torch.device], Callable[[], object]], case: Case, device: torch.device) -> float:
    """Return the peak memory of a step in MiB, with the weights and the state of the optimizer."""
    before = torch.cuda.memory_allocated(device)
    step = build(case, device)
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
