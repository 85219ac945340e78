"""The learning rate as a pure function of the epoch."""

from __future__ import annotations

from yacs.config import CfgNode


def learning_rate_at(cfg: CfgNode, epoch: int, num_gpus: int = 1) -> float:
    """The base rate in ``epoch``, counted from 1, on ``num_gpus`` GPUs; a group multiplies it by its ``lr_scale``.

    The rate rises linearly with the global batch, that is with the number of GPUs and with SOLVER.ACCUMULATE,
    by which each does the work of several. Warm-up is a ramp
    from WARMUP_FACTOR times the full rate in epoch 1 to the full rate in epoch WARMUP_EPOCH; with a
    factor of 1 / WARMUP_EPOCH, as published, that is ``base * epoch / WARMUP_EPOCH``.
    """
    solver = cfg.SOLVER
    base = solver.BASE_LR * num_gpus * solver.ACCUMULATE
    if solver.WARMUP and epoch < solver.WARMUP_EPOCH:
        length = solver.WARMUP_EPOCH
        first = solver.WARMUP_FACTOR * length  # in epochs of a ramp that starts from nothing
        position = first + (epoch - 1) * (length - first) / (length - 1)
        return base * position / length
    for milestone in solver.LR_MILESTONES:
        if epoch > milestone:
            base *= solver.LR_GAMMA
    return base
