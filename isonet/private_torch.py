"""The private names of torch that this package uses, each in a separate function.

torch may rename them without notice. Each docstring says why no public name is used and which test then fails.
Checked with torch 2.11 to 2.15.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """Return whether a ``torch.func`` transform or a forward-mode level is active.

    Plain operators then replace custom autograd functions. These would need a ``jvp``, which no compiled graph may
    have, and torch drops the derivative of what a ``jvp`` computes, without an error (the second derivative of x^3 at
    2, forward over forward, is 0). No public function returns this. Test: tests/models/test_transforms.py.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer's kernel reads ``optimizer.found_inf`` and skips the step if it is set.

    ``GradScaler`` checks this in the same way. Test: tests/processes/test_fused_update.py.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def flag_non_finite_(grads: Sequence[Tensor], flag: Tensor, one: Tensor) -> None:
    """Set ``flag`` to 1 if any of ``grads``, all of one type, is non-finite. one: a tensor with the value 1.

    This is the kernel of ``GradScaler``: one pass over all gradients, without waiting. It multiplies them by
    ``one``. Its public form, ``GradScaler.unscale_``, only works with fp16. Test: tests/processes/test_fused_update.py.
    """
    torch._amp_foreach_non_finite_check_and_unscale_(list(grads), flag, one)


def scale_on_device(scaler: torch.amp.GradScaler) -> Tensor | None:
    """Return the scale of fp16 without waiting for the device, or None before the first step.

    The public ``get_scale`` copies it to the host. Test: tests/training/test_fast.py.
    """
    return scaler._get_scale_async()
