"""Sums over the steps of an epoch, kept on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isonet.data.faults import STORAGE_GONE
from isonet.errors import DataError
from isonet.training.step import StepOutput, count_correct
from isonet.training.world import ALONE, World

_NEVER = torch.iinfo(torch.int64).max


class EpochSums:
    """Sums over the steps of an epoch; ``read`` and ``state_dict`` are where one waits for the device.

    Each process of ``world`` adds up its own part of the images. Those two add the processes' sums, and so
    all of them call them at the same step.
    """

    def __init__(self, device: torch.device, world: World = ALONE) -> None:
        self.world = world
        # cross entropy x images, penalty, images, top-1, top-5: float64 counts exactly beyond any epoch
        self.own = torch.zeros(5, dtype=torch.float64, device=device)
        self.bad_step = torch.full((), _NEVER, device=device)  # the first that was not finite
        self.steps = 0
        self.seconds = 0.0  # of the steps
        self.waited = 0.0  # seconds of those spent waiting for data

    def add(self, output: StepOutput, labels: Tensor, total: int | None = None) -> None:
        """Add a step on ``labels``, of ``total`` images over all processes."""
        self.steps += 1
        cross_entropy = output.cross_entropy * (total or len(labels))
        count = torch.full_like(cross_entropy, len(labels))
        losses = torch.stack([cross_entropy, output.penalty, count]).double()
        self.own += torch.cat([losses, count_correct(output.logits, labels)])
        self.bad_step.clamp_(max=torch.where(output.finite, _NEVER, self.steps))

    def read(self) -> dict[str, float]:
        """Means so far (accuracies in percent), ``images``, and ``bad_step``: 0, or the first that was not finite."""
        cross_entropy, penalty, images, top1, top5 = self._totals()
        if not images:
            raise DataError(f"none of the images of the epoch could be read; {STORAGE_GONE}")
        bad_step = int(self.world.lowest(self.bad_step.clone()))
        return {
            "cross_entropy": cross_entropy / images,
            "penalty": penalty / self.steps,
            "train_top1": 100 * top1 / images,
            "train_top5": 100 * top5 / images,
            "images": images,
            "bad_step": 0 if bad_step == _NEVER else bad_step,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint within the epoch holds; not ``bad_step``, since none is saved after one."""
        cross_entropy, penalty, images, top1, top5 = self._totals()
        return {
            "losses": [cross_entropy, penalty],
            "correct": [int(top1), int(top5)],
            "images": int(images),
            "steps": self.steps,
            "seconds": self.seconds,
            "waited": self.waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the sums of all processes, which the leading one takes as its own."""
        if self.world.leads:
            self.own.copy_(torch.tensor([*state["losses"], state["images"], *state["correct"]], dtype=torch.float64))
        self.steps, self.seconds, self.waited = state["steps"], state["seconds"], state["waited"]

    def _totals(self) -> list[float]:
        return self.world.sum(self.own.clone()).tolist()
