"""The learning rate as a pure function of the epoch, and of how much of it is done."""

from __future__ import annotations

import math

from yacs.config import CfgNode

_ROUNDING = 0.01  # by which a factor may differ from 1 / WARMUP_EPOCH and still state it


def learning_rate_at(cfg: CfgNode, epoch: int, num_gpus: int = 1, done: float = 0.0) -> float:
    """The base rate in ``epoch``, counted from 1, on ``num_gpus`` GPUs; a group multiplies it by its ``lr_scale``.

    done: the share of the epoch's images that were taken, from 0 to 1. As published (SOLVER.SCHEDULE steps) the rate
    is the same in all of an epoch, and falls after milestones; linear and cosine fall with every step, from the end of
    the warm-up to 0 at the end of the last epoch.

    The rate rises linearly with the global batch, that is with the number of GPUs and with SOLVER.ACCUMULATE,
    by which each does the work of several. Warm-up is a ramp to the full rate in epoch WARMUP_EPOCH. With steps it
    is the published one, ``base * epoch / WARMUP_EPOCH``. With linear and cosine it starts at WARMUP_FACTOR times the
    full rate in epoch 1.
    """
    solver = cfg.SOLVER
    base = solver.BASE_LR * num_gpus * solver.ACCUMULATE
    if solver.SCHEDULE == "steps":
        return _by_steps(solver, base, epoch)
    passed = epoch - 1 + done  # epochs
    ramp = solver.WARMUP_EPOCH - 1 if solver.WARMUP else 0  # likewise
    if passed < ramp:
        length = solver.WARMUP_EPOCH
        first = solver.WARMUP_FACTOR * length  # in epochs of a ramp that starts from nothing
        position = first + passed * (length - first) / (length - 1)
        return base * position / length
    left = max(0.0, (solver.MAX_EPOCHS - passed) / max(solver.MAX_EPOCHS - ramp, 1))
    return base * (left if solver.SCHEDULE == "linear" else (1 - math.cos(math.pi * left)) / 2)


def _by_steps(solver: CfgNode, base: float, epoch: int) -> float:
    if solver.WARMUP and epoch < solver.WARMUP_EPOCH:
        return base * epoch / solver.WARMUP_EPOCH
    for milestone in solver.LR_MILESTONES:
        if epoch > milestone:
            base *= solver.LR_GAMMA
    return base


def unused_warmup_factor(cfg: CfgNode) -> str:
    """A warning if SOLVER.WARMUP_FACTOR contradicts the ramp in use, else an empty string.

    The published code never reads the key, and neither does SCHEDULE steps. A factor of 1 / WARMUP_EPOCH says the ramp
    that is used, also if it is rounded to three digits, such as 0.333.
    """
    solver = cfg.SOLVER
    has_ramp = solver.SCHEDULE == "steps" and solver.WARMUP and solver.WARMUP_EPOCH > 1
    if not has_ramp or math.isclose(solver.WARMUP_FACTOR * solver.WARMUP_EPOCH, 1, rel_tol=_ROUNDING):
        return ""
    first = 1 / solver.WARMUP_EPOCH
    return (
        f"SOLVER.WARMUP_FACTOR {solver.WARMUP_FACTOR:g} is not used: with SOLVER.SCHEDULE steps the warm-up is the "
        f"published one, the full rate * epoch / {solver.WARMUP_EPOCH}. SOLVER.WARMUP_FACTOR {first:.3g} says the "
        "same; SOLVER.SCHEDULE linear and cosine use the factor"
    )
