"""One training step: the gradient of cross entropy + ORTHO_COEFF * penalty, and the update of the weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from isonet.data.random_streams import stream_seed
from isonet.fast_penalty import OrthoPenalty
from isonet.ortho import PUBLISHED
from isonet.profiling import BACKWARD, FORWARD, PENALTY, UPDATE
from isonet.shares import Share
from isonet.training.devices import seed_everything
from isonet.training.distributed import ALONE, World
from isonet.training.optim import Amp, GuardedUpdate


@dataclass
class StepOutput:
    """The results of a step, detached and on the device. Each rank has its part."""

    logits: Tensor  # (N, num_classes)
    cross_entropy: Tensor  # scalar: the sum over the ranks is the mean over the batch
    penalty: Tensor  # scalar, without its coefficient: the sum over the ranks is the last penalty that was computed
    finite: Tensor  # bool: whether losses and gradients are finite, in this step and all before it


class TrainStep:
    """Minimises ``cross entropy + ortho_coeff * penalty``, one batch per call.

    Each of the two terms has its own backward pass, which adds its gradients. Hooks on a weight's gradient see both.

    forward: ``model``, or a wrapper that compiles it or spreads it over devices or ranks.
    model: the modules to penalise. The penalty depends on the weights alone, so it is computed once per step;
        each rank of ``world`` computes its share of the layers. With a coefficient of 0 it is not computed.
    accumulate: the number of pieces in which a batch is computed; their gradients are added.
    seed: the seed of random layers, such as dropout, or None for torch's global generators.
    last_penalty: this rank's share of the penalty at the last step that computed it, for ``penalty_weight``.
    strided: the penalty of strided convolutions, "published" or "operator" (``isonet.ortho``).
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ortho_coeff: float,
        *,
        amp: Amp | None = None,
        world: World = ALONE,
        accumulate: int = 1,
        seed: int | None = None,
        strided: str = PUBLISHED,
    ) -> None:
        self.forward = forward
        self.optimizer = optimizer
        self.ortho_coeff = ortho_coeff
        self.penalty = OrthoPenalty(model, world.share, strided=strided) if ortho_coeff > 0 else None
        device = next(model.parameters()).device
        self.last_penalty = torch.zeros((), device=device)
        self.amp = amp or Amp("off", device)
        self.update = GuardedUpdate(optimizer, self.amp)
        self.world = world
        self.accumulate = accumulate
        self.seed = seed

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        total: int | None = None,
        position: tuple[int, int] = (0, 0),
        penalty_weight: int = 1,
    ) -> StepOutput:
        """Take a step.

        images: (N, 3, H, W). labels: (N,) int64. total: the images of the batch on all ranks, by default N.
        position: the numbers of the epoch and the step, which seed random layers.
        penalty_weight: a factor on the penalty in this step. 0: this step does not compute the penalty.
        """
        ranks = self.world.size
        total = total or len(labels)
        self.optimizer.zero_grad(set_to_none=True)

        # The penalty is computed first: its working memory is free when the activations need memory. DDP averages
        # the gradients of the ranks, so each rank multiplies its share by the number of ranks
        if self.penalty and penalty_weight:
            with record_function(PENALTY):
                penalty = self.penalty()
                if penalty.requires_grad:  # not if all penalised weights are frozen
                    self.amp.backward(self.ortho_coeff * penalty_weight * ranks * penalty)
                self.last_penalty = penalty.detach()

        outputs, cross_entropy = [], images.new_zeros(())
        pieces = self._pieces(images, labels)
        for number, (part, targets) in enumerate(pieces, start=1):
            self._seed(position, number)
            with self._synchronised(number == len(pieces)):
                with record_function(FORWARD), self.amp.autocast():
                    logits = self.forward(part)
                loss = F.cross_entropy(full_type(logits), targets, reduction="sum") / (total / ranks)
                if ranks > 1:  # times 1, or NaN if this rank's penalty is non-finite, so that every rank sees it
                    loss = loss * (1 + 0 * self.last_penalty)
                with record_function(BACKWARD):
                    self.amp.backward(loss if len(labels) else 0 * loss)
            if len(labels):
                cross_entropy += loss.detach() / ranks
            outputs.append(logits.detach())
        with record_function(UPDATE):
            finite = self.update(torch.stack([cross_entropy, self.last_penalty]))
        return StepOutput(torch.cat(outputs)[: len(labels)], cross_entropy, self.last_penalty, finite)

    @torch.no_grad()
    def set_last_penalty(self, value: float | None) -> None:
        """Set the last penalty to ``value``, the sum over the ranks, or for None to the penalty of the weights."""
        if value is not None:
            self.last_penalty.fill_(value if self.world.is_main else 0.0)
        elif self.penalty:
            self.last_penalty = self.penalty()

    def _pieces(self, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split a batch into the pieces that are computed one after another.

        In an incomplete last batch, a rank may have no image. It then uses a black one with a loss of weight 0, since
        all ranks must take part in the all-reduce.
        """
        if not len(labels):
            return [(images.new_zeros(1, *images.shape[1:]), labels.new_zeros(1))]
        shares = [Share(i, self.accumulate).of(len(labels)) for i in range(min(self.accumulate, len(labels)))]
        return [(images[share], labels[share]) for share in shares]

    def _synchronised(self, last: bool) -> AbstractContextManager:
        """Return a context in which DDP averages the gradients only in the backward pass of the last piece."""
        if isinstance(self.forward, DistributedDataParallel) and not last:
            return self.forward.no_sync()
        return nullcontext()

    def _seed(self, position: tuple[int, int], piece: int) -> None:
        """Seed by epoch, step and piece, so that a resumed run draws the same numbers.

        Pieces are counted over all ranks: four pieces of one rank draw the numbers of one piece on each of four ranks.
        The replicas of DataParallel count as ranks; ``torch.manual_seed`` alone would give all of them the same masks.
        """
        if self.seed is None:
            return

        def seed_of(rank: int) -> int:
            return stream_seed(self.seed or 0, "step", *position, rank * self.accumulate + piece)

        seed_everything(seed_of(self.world.rank))
        if isinstance(self.forward, nn.DataParallel):
            for replica, device in enumerate(self.forward.device_ids):
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed_of(replica))


def full_type(logits: Tensor) -> Tensor:
    """Return ``logits`` in float32 or, if they are float64, unchanged: the loss of a float64 network is float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
