"""The update of the weights, held back from the first step on that would spoil them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from isonet.training.amp import Amp


class GuardedUpdate:
    """Steps ``optimizer`` as long as loss and gradient are finite; from the first step on where not, never again.

    Nothing waits for the device: the optimiser's kernel reads there whether to run. So the weights that a
    later look finds are those that the failed step was computed with. That takes a fused optimiser, as
    ``build_optimizer`` makes; another one is stepped regardless, and the failure only reported.
    With fp16 a gradient that is not finite is part of the search for a scale, and skips its own step alone.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, amp: Amp) -> None:
        self.optimizer = optimizer
        self.amp = amp
        self.halted = torch.zeros((), device=amp.device)  # 1 from the first failure on; float, as the kernel wants it
        self.can_hold = getattr(optimizer, "_step_supports_amp_scaling", False)

    def __call__(self, losses: Tensor) -> Tensor:
        """Update with the gradients at hand; returns whether they and ``losses``, (n,), are finite: bool, ()."""
        finite = losses.isfinite().all()
        if self.amp.scaler.is_enabled():
            self.amp.step(self.optimizer)
            return finite
        grads = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        # One number that is not finite where any of the gradient's is not (or is beyond 1e19, whose square is not)
        finite = finite & get_total_norm(grads).isfinite()
        self.halted = torch.maximum(self.halted, (~finite).to(self.halted.dtype))
        if self.can_hold:
            self.optimizer.found_inf = self.halted  # type: ignore[attr-defined]
        self.optimizer.step()
        return finite
