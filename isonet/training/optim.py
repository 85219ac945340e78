"""The optimiser: SGD with three groups of parameters."""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from isonet.models.layers import ResMultiplier, SReLU

MULTIPLIER_LR_SCALE = 0.1


def build_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.SGD:
    """SGD over the SReLU shifts (not decayed), the residual multipliers (a tenth of the rate), and the rest.

    Parameters that need no gradient, as those of frozen parts, are in no group.

    Every group carries its ``name`` and the ``lr_scale`` by which ``set_learning_rate`` multiplies the
    schedule. Groups are told apart by the type of the module that owns a parameter, never by name;
    a network without shifts or multipliers has that group empty.
    """
    solver = cfg.SOLVER
    shifts = _parameters_of(model, SReLU)
    multipliers = _parameters_of(model, ResMultiplier)
    special = {id(p) for p in shifts + multipliers}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in special]
    groups = [
        {"name": "shifts", "params": shifts, "lr_scale": 1.0, "weight_decay": 0.0},
        {"name": "weights", "params": weights, "lr_scale": 1.0, "weight_decay": solver.WEIGHT_DECAY},
        {
            "name": "multipliers",
            "params": multipliers,
            "lr_scale": MULTIPLIER_LR_SCALE,
            "weight_decay": solver.WEIGHT_DECAY,
        },
    ]
    optimizer = torch.optim.SGD(
        groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        dampening=float(solver.DAMPENING),
        nesterov=solver.NESTEROV,
        fused=True,  # faster, the same up to the last bit, and a step can be held back without waiting for the device
    )
    set_learning_rate(optimizer, solver.BASE_LR)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, base: float) -> None:
    """Give each group ``base`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = base * group["lr_scale"]


def _parameters_of(model: nn.Module, kind: type[nn.Module]) -> list[nn.Parameter]:
    owned = [p for module in model.modules() if isinstance(module, kind) for p in module.parameters(recurse=False)]
    return [p for p in owned if p.requires_grad]
