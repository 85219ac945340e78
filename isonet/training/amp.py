"""Mixed precision: the network in a 16-bit type, the weights, the loss and the penalty in float32."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

log = logging.getLogger("isonet")

_DTYPE = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Amp:
    """``kind``: off, bf16, or fp16, whose gradients are scaled so that small ones do not vanish."""

    def __init__(self, kind: str, device: torch.device) -> None:
        self.device = device
        self.dtype = _DTYPE[kind]
        self.scaler = torch.amp.GradScaler(device.type, enabled=kind == "fp16")
        if self.dtype and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
            log.warning("RUNTIME.AMP %s: this CPU has no 16-bit arithmetic and is many times slower with it", kind)

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to the parameters', scaled with fp16."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the parameters; with fp16 not if a gradient is not finite."""
        first = self.scaler.is_enabled() and optimizer.defaults.get("momentum") and not optimizer.state
        if first and not self._gradient_is_finite(optimizer):
            # torch 2.15 does not start the momentum of a fused optimiser at 0 if its first step is skipped
            self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
            return
        self.scaler.step(optimizer)
        self.scaler.update()

    @staticmethod
    def _gradient_is_finite(optimizer: torch.optim.Optimizer) -> bool:
        """Waits for the device, and so is asked of the first steps only."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        return all(bool(grad.isfinite().all()) for grad in grads)
