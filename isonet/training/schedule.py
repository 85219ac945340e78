"""The learning rate as a pure function of the epoch, and of how much of it is done."""

from __future__ import annotations

import math

from yacs.config import CfgNode


def learning_rate_at(cfg: CfgNode, epoch: int, num_gpus: int = 1, done: float = 0.0) -> float:
    """The base rate in ``epoch``, counted from 1, on ``num_gpus`` GPUs; a group multiplies it by its ``lr_scale``.

    done: the share of the epoch's images that were taken, from 0 to 1. As published (SOLVER.SCHEDULE steps) the rate
    is the same in all of an epoch, and falls after milestones; linear and cosine fall with every step, from the end of
    the warm-up to 0 at the end of the last epoch.

    The rate rises linearly with the global batch, that is with the number of GPUs and with SOLVER.ACCUMULATE,
    by which each does the work of several. Warm-up is a ramp
    from WARMUP_FACTOR times the full rate in epoch 1 to the full rate in epoch WARMUP_EPOCH; with a
    factor of 1 / WARMUP_EPOCH, as published, that is ``base * epoch / WARMUP_EPOCH``.
    """
    solver = cfg.SOLVER
    base = solver.BASE_LR * num_gpus * solver.ACCUMULATE
    passed = epoch - 1 if solver.SCHEDULE == "steps" else epoch - 1 + done  # epochs
    ramp = solver.WARMUP_EPOCH - 1 if solver.WARMUP else 0  # likewise
    if passed < ramp:
        length = solver.WARMUP_EPOCH
        first = solver.WARMUP_FACTOR * length  # in epochs of a ramp that starts from nothing
        position = first + passed * (length - first) / (length - 1)
        return base * position / length
    if solver.SCHEDULE == "steps":
        for milestone in solver.LR_MILESTONES:
            if epoch > milestone:
                base *= solver.LR_GAMMA
        return base
    left = max(0.0, (solver.MAX_EPOCHS - passed) / max(solver.MAX_EPOCHS - ramp, 1))
    return base * (left if solver.SCHEDULE == "linear" else (1 - math.cos(math.pi * left)) / 2)
