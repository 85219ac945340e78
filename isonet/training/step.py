"""One training step, and the sums it leaves on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isonet.ortho import OrthoPenalty
from isonet.training.amp import Amp
from isonet.training.update import GuardedUpdate

TOP_K = 5


@dataclass
class StepOutput:
    """What one step leaves for the log, all on the device and detached."""

    logits: Tensor  # (N, num_classes)
    cross_entropy: Tensor  # scalar, mean over the batch
    penalty: Tensor  # scalar, without its coefficient
    finite: Tensor  # bool, whether losses and gradient are


class TrainStep:
    """Lowers ``cross entropy + ortho_coeff * penalty`` on one batch after another.

    The two terms have a backward pass each, whose gradients add up: hooks on a weight's gradient see both.

    ``forward`` is ``model`` or a wrapper that spreads or compiles it. The penalty depends on the weights
    alone, so it is taken of ``model``, once; with a coefficient of 0 it is not computed.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ortho_coeff: float,
        amp: Amp | None = None,
    ) -> None:
        self.forward = forward
        self.optimizer = optimizer
        self.ortho_coeff = ortho_coeff
        self.penalty = OrthoPenalty(model) if ortho_coeff > 0 else None
        self.amp = amp or Amp("off", next(model.parameters()).device)
        self.update = GuardedUpdate(optimizer, self.amp)

    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        self.optimizer.zero_grad(set_to_none=True)
        # By itself and first: its working memory is free again when the activations fill theirs
        penalty = self.penalty() if self.penalty else torch.zeros((), device=images.device)
        if penalty.requires_grad:  # not without a penalised weight to train
            self.amp.backward(self.ortho_coeff * penalty)

        with self.amp.autocast():
            logits = self.forward(images)
        cross_entropy = F.cross_entropy(logits.float(), labels)
        self.amp.backward(cross_entropy)
        finite = self.update(torch.stack([cross_entropy.detach(), penalty.detach()]))
        return StepOutput(logits.detach(), cross_entropy.detach(), penalty.detach(), finite)


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels are the first, and among the first five, guesses: (2,) int64."""
    guesses = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
    hits = guesses == labels[:, None]
    return torch.stack([hits[:, 0].sum(), hits.sum()])


class EpochSums:
    """Sums over the steps of an epoch, kept on the device; ``read`` and ``state_dict`` are where one waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.losses = torch.zeros(2, dtype=torch.float64, device=device)  # cross entropy x images, penalty
        self.correct = torch.zeros(2, dtype=torch.int64, device=device)  # top-1, top-5
        self.bad_step = torch.zeros((), dtype=torch.int64, device=device)  # first step that was not finite, or 0
        self.images = 0
        self.steps = 0
        self.seconds = 0.0  # of the steps
        self.waited = 0.0  # seconds of those spent waiting for data

    def add(self, output: StepOutput, labels: Tensor) -> None:
        self.images += len(labels)
        self.steps += 1
        self.losses += torch.stack([output.cross_entropy * len(labels), output.penalty])
        self.correct += count_correct(output.logits, labels)
        first_bad = (self.bad_step == 0) & ~output.finite
        self.bad_step += first_bad * self.steps

    def read(self) -> dict[str, float]:
        """Means so far (accuracies in percent), and ``bad_step``."""
        cross_entropy, penalty = self.losses.tolist()
        top1, top5 = self.correct.tolist()
        return {
            "cross_entropy": cross_entropy / self.images,
            "penalty": penalty / self.steps,
            "train_top1": 100 * top1 / self.images,
            "train_top5": 100 * top5 / self.images,
            "bad_step": int(self.bad_step),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint within the epoch holds; not ``bad_step``, since none is saved after one."""
        return {
            "losses": self.losses.tolist(),
            "correct": self.correct.tolist(),
            "images": self.images,
            "steps": self.steps,
            "seconds": self.seconds,
            "waited": self.waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses.copy_(torch.tensor(state["losses"], dtype=torch.float64))
        self.correct.copy_(torch.tensor(state["correct"]))
        self.images, self.steps = state["images"], state["steps"]
        self.seconds, self.waited = state["seconds"], state["waited"]
