"""The update of the weights, held back from the first step on that would spoil them."""

from __future__ import annotations

import torch
from torch import Tensor

from isonet.training.amp import Amp

SMALLEST_SCALE = 2.0**-30  # of fp16: 46 times halved in a row, it is not the scale that makes gradients infinite


class GuardedUpdate:
    """Steps ``optimizer`` as long as loss and gradient are finite; from the first step on where not, never again.

    Nothing waits for the device: the optimiser's kernel reads there whether to run. So the weights that a
    later look finds are those that the failed step was computed with. That takes a fused optimiser, as
    ``build_optimizer`` makes; another one is stepped regardless, and the failure only reported.
    With fp16 a gradient that is not finite is part of the search for a scale, and skips its own step alone; a
    scale below ``SMALLEST_SCALE`` says that there is none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, amp: Amp) -> None:
        self.optimizer = optimizer
        self.amp = amp
        self.halted = torch.zeros((), device=amp.device)  # 1 from the first failure on; float, as the kernel wants it
        self.one = torch.ones((), device=amp.device)
        self.can_hold = getattr(optimizer, "_step_supports_amp_scaling", False)

    def __call__(self, losses: Tensor) -> Tensor:
        """Update with the gradients at hand; returns whether all was finite in this step and those before it.

        losses: (n,), of the step. The answer is a bool, (), on the device.
        """
        self.halted = torch.maximum(self.halted, (~losses.isfinite().all()).to(self.halted.dtype))
        scaler = self.amp.scaler
        if scaler.is_enabled():
            self.amp.step(self.optimizer)
            scale = scaler._get_scale_async()  # get_scale would wait for the device
            return (self.halted == 0) & (scale > SMALLEST_SCALE if scale is not None else True)
        # GradScaler's own kernel: one pass, which sets the flag where a number is not finite, and multiplies by 1
        for grads in self._gradients().values():
            torch._amp_foreach_non_finite_check_and_unscale_(grads, self.halted, self.one)
        if self.can_hold:
            self.optimizer.found_inf = self.halted  # type: ignore[attr-defined]
        self.optimizer.step()
        return self.halted == 0

    def _gradients(self) -> dict[torch.dtype, list[Tensor]]:
        """By type, as the kernel takes them."""
        grads: dict[torch.dtype, list[Tensor]] = {}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    grads.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        return grads
