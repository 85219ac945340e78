"""Whether derivatives are taken by something else than an ordinary backward pass."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """Whether a ``torch.func`` transform or a forward-mode level is active.

    Plain operators must then replace custom autograd functions. These would need a ``jvp``, which no compiled graph may
    have, and torch drops the derivative of what a ``jvp`` computes, without an error (2.11 to 2.15: the second
    derivative of x^3 at 2, forward over forward, is 0).
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
