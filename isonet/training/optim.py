"""The optimizer: groups of parameters, learning rate, mixed precision, a step that skips non-finite gradients."""

import logging
import math

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from isonet.models.layers import ResMultiplier, SReLU
from isonet.private_torch import flag_non_finite_, scale_on_device, skips_on_device

log = logging.getLogger("isonet")

MULTIPLIER_LR_SCALE = 0.1
SMALLEST_SCALE = 2.0**-30  # of fp16: after 46 halvings in a row, the scale is not the cause of infinite gradients

_DTYPE = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_ROUNDING = 0.01  # relative: a factor this close to 1 / WARMUP_EPOCH counts as equal


def build_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.SGD:
    """Return SGD with groups for SReLU shifts (no decay), multipliers (a tenth of the rate) and all other weights.

    Every group has a ``name`` and the ``lr_scale`` by which ``set_learning_rate`` multiplies the schedule. The
    type of the module that owns a parameter decides its group, never its name. A group may be empty. Parameters that
    need no gradient, such as frozen ones, are in no group.
    """
    solver = cfg.SOLVER
    shifts = _parameters_of(model, SReLU)
    multipliers = _parameters_of(model, ResMultiplier)
    special = {id(p) for p in shifts + multipliers}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in special]
    decay = solver.WEIGHT_DECAY
    groups = [
        {"name": "shifts", "params": shifts, "lr_scale": 1.0, "weight_decay": 0.0},
        {"name": "weights", "params": weights, "lr_scale": 1.0, "weight_decay": decay},
        {"name": "multipliers", "params": multipliers, "lr_scale": MULTIPLIER_LR_SCALE, "weight_decay": decay},
    ]
    optimizer = torch.optim.SGD(
        groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        dampening=float(solver.DAMPENING),
        nesterov=solver.NESTEROV,
        fused=True,  # faster, equal up to the last bit, and its kernel can skip a step without waiting for the device
    )
    set_learning_rate(optimizer, solver.BASE_LR)
    return optimizer


def _parameters_of(model: nn.Module, kind: type[nn.Module]) -> list[nn.Parameter]:
    owned = [p for module in model.modules() if isinstance(module, kind) for p in module.parameters(recurse=False)]
    return [p for p in owned if p.requires_grad]


def set_learning_rate(optimizer: torch.optim.Optimizer, base: float) -> None:
    """Set the rate of each group to ``base`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = base * group["lr_scale"]


def learning_rate_at(cfg: CfgNode, epoch: int, num_gpus: int = 1, done: float = 0.0) -> float:
    """Return the base rate in ``epoch``, counted from 1, on ``num_gpus`` GPUs.

    done: the fraction of the epoch's images already done, from 0 to 1. With SOLVER.SCHEDULE steps, as published, the
    rate is constant within an epoch and drops after milestones. With linear and cosine it falls with every step, from
    the end of the warm-up to 0 at the end of the last epoch.

    The rate is proportional to the global batch, that is to the number of GPUs times SOLVER.ACCUMULATE. Warm-up is a
    ramp to the full rate in epoch WARMUP_EPOCH. With steps it is the published ramp, ``base * epoch / WARMUP_EPOCH``.
    With linear and cosine it starts from WARMUP_FACTOR times the full rate.
    """
    solver = cfg.SOLVER
    base = solver.BASE_LR * num_gpus * solver.ACCUMULATE
    if solver.SCHEDULE == "steps":
        if solver.WARMUP and epoch < solver.WARMUP_EPOCH:
            return base * epoch / solver.WARMUP_EPOCH
        for _ in filter(lambda milestone: epoch > milestone, solver.LR_MILESTONES):
            base *= solver.LR_GAMMA
        return base
    passed = epoch - 1 + done  # epochs
    ramp = solver.WARMUP_EPOCH - 1 if solver.WARMUP else 0  # likewise
    if passed < ramp:
        length = solver.WARMUP_EPOCH
        first = solver.WARMUP_FACTOR * length  # epochs that a ramp from 0 takes to reach WARMUP_FACTOR
        position = first + passed * (length - first) / (length - 1)
        return base * position / length
    left = max(0.0, (solver.MAX_EPOCHS - passed) / max(solver.MAX_EPOCHS - ramp, 1))
    return base * (left if solver.SCHEDULE == "linear" else (1 - math.cos(math.pi * left)) / 2)


def unused_warmup_factor(cfg: CfgNode) -> str:
    """Return a warning if SOLVER.WARMUP_FACTOR contradicts the ramp in use, or else an empty string.

    The published code ignores the key, and so does SCHEDULE steps. A factor of 1 / WARMUP_EPOCH, even if it is rounded
    to three digits such as 0.333, agrees with the ramp.
    """
    solver = cfg.SOLVER
    has_ramp = solver.SCHEDULE == "steps" and solver.WARMUP and solver.WARMUP_EPOCH > 1
    if not has_ramp or math.isclose(solver.WARMUP_FACTOR * solver.WARMUP_EPOCH, 1, rel_tol=_ROUNDING):
        return ""
    return (
        f"SOLVER.WARMUP_FACTOR {solver.WARMUP_FACTOR:g} is not used: with SOLVER.SCHEDULE steps the warm-up is the "
        f"published one, the full rate * epoch / {solver.WARMUP_EPOCH}. {1 / solver.WARMUP_EPOCH:.3g} states the same; "
        "SOLVER.SCHEDULE linear and cosine use the factor"
    )


class Amp:
    """Mixed precision: the network in a 16-bit type; the weights, the loss and the penalty in float32.

    kind: "off", "bf16" or "fp16". With fp16, gradients are scaled so that small gradients do not vanish.
    """

    def __init__(self, kind: str, device: torch.device) -> None:
        self.device = device
        self.dtype = _DTYPE[kind]
        self.scaler = torch.amp.GradScaler(device.type, enabled=kind == "fp16")
        if self.dtype and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
            log.warning("RUNTIME.AMP %s: this CPU has no 16-bit arithmetic and is many times slower with it", kind)

    def autocast(self) -> torch.autocast:
        """Return the autocast context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to the gradients of the parameters. With fp16, it is scaled."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step with fp16's scaled gradients, unless one of them is non-finite, and adapt the scale."""
        if optimizer.defaults.get("momentum") and not optimizer.state and not _gradients_are_finite(optimizer):
            # torch 2.15: a fused optimizer whose first step is skipped does not start its momentum at 0
            self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
            return
        self.scaler.step(optimizer)
        self.scaler.update()


class GuardedUpdate:
    """The optimizer step. From the first non-finite loss or gradient on, every step is skipped.

    The host never waits for the device, because the optimizer kernel reads a flag in device memory. The weights
    therefore remain those of the failed step. This needs a fused optimizer, such as ``build_optimizer`` returns. Any
    other optimizer steps regardless, and the failure is only reported.

    With fp16, a non-finite gradient is part of the search for a scale, and only its own step is skipped. If the scale
    falls below ``SMALLEST_SCALE``, the search has failed.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, amp: Amp) -> None:
        self.optimizer = optimizer
        self.amp = amp
        self.halted = torch.zeros((), device=amp.device)  # 1 from the first failure on; the kernel takes a float
        self.one = torch.ones((), device=amp.device)
        self.can_skip = skips_on_device(optimizer)

    def __call__(self, losses: Tensor) -> Tensor:
        """Step with the current gradients, and return whether this step and all earlier steps were finite.

        losses: the losses of the step, (n,). The result is a bool tensor, (), on the device.
        """
        self.halted = torch.maximum(self.halted, (~losses.isfinite().all()).to(self.halted.dtype))
        scaler = self.amp.scaler
        if scaler.is_enabled():
            self.amp.step(self.optimizer)
            scale = scale_on_device(scaler)
            return (self.halted == 0) & (scale > SMALLEST_SCALE if scale is not None else True)
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for grad in _gradients(self.optimizer):
            by_dtype.setdefault(grad.dtype, []).append(grad)
        for grads in by_dtype.values():
            flag_non_finite_(grads, self.halted, self.one)
        if self.can_skip:
            self.optimizer.found_inf = self.halted  # type: ignore[attr-defined]
        self.optimizer.step()
        return self.halted == 0


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _gradients_are_finite(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether all gradients are finite. Waits for the device, and is called until a first step succeeds."""
    return all(bool(grad.isfinite().all()) for grad in _gradients(optimizer))
