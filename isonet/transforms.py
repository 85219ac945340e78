"""Whether ``torch.func`` is at work, where custom autograd functions give way to plain operators."""

from __future__ import annotations

import torch


def transforms_active() -> bool:
    """Whether this runs inside ``torch.func.grad``, ``jvp``, ``vmap`` or the like.

    ``torch.func`` drops the second derivative of an autograd function whose first is taken by its own ``jvp``, without
    an error (torch 2.11 to 2.15: the second derivative of x^3 at 2 comes out as 0). Plain operators are right there.
    """
    return torch._C._are_functorch_transforms_active()
