"""One training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isonet.data.random_streams import stream_seed
from isonet.fast_penalty import OrthoPenalty
from isonet.ortho import PUBLISHED
from isonet.shares import Share
from isonet.training.amp import Amp
from isonet.training.devices import seed_everything
from isonet.training.update import GuardedUpdate
from isonet.training.world import ALONE, World

TOP_K = 5


@dataclass
class StepOutput:
    """What one step leaves for the log, all on the device and detached; of several processes each leaves its part."""

    logits: Tensor  # (N, num_classes)
    cross_entropy: Tensor  # scalar, mean over the batch: the parts of the processes add up to it
    penalty: Tensor  # scalar, without its coefficient; likewise
    finite: Tensor  # bool, whether losses and gradient are


class TrainStep:
    """Lowers ``cross entropy + ortho_coeff * penalty`` on one batch after another.

    The two terms have a backward pass each, whose gradients add up: hooks on a weight's gradient see both.

    ``forward`` is ``model`` or a wrapper that spreads, compiles or synchronises it. The penalty depends on
    the weights alone, so it is taken of ``model``, once, each process of ``world`` its share of the layers;
    with a coefficient of 0 it is not computed.
    accumulate: in so many pieces a batch goes through the network, their gradients adding up.
    seed: of what layers draw, such as dropout; None: they draw from torch's streams as they are.
    strided: which penalty strided convolutions have, "published" or "operator" (``isonet.ortho``).
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ortho_coeff: float,
        amp: Amp | None = None,
        world: World = ALONE,
        accumulate: int = 1,
        seed: int | None = None,
        strided: str = PUBLISHED,
    ) -> None:
        self.forward = forward
        self.model = model
        self.optimizer = optimizer
        self.ortho_coeff = ortho_coeff
        self.penalty = OrthoPenalty(model, world.share, strided=strided) if ortho_coeff > 0 else None
        self.amp = amp or Amp("off", next(model.parameters()).device)
        self.update = GuardedUpdate(optimizer, self.amp)
        self.world = world
        self.accumulate = accumulate
        self.seed = seed

    def __call__(
        self, images: Tensor, labels: Tensor, total: int | None = None, position: tuple[int, int] = (0, 0)
    ) -> StepOutput:
        """Take a step. total: images of the batch over all processes; position: epoch and step, for the streams."""
        total = total or len(labels)
        self.optimizer.zero_grad(set_to_none=True)
        # By itself and first: its working memory is free again when the activations fill theirs. The
        # processes' gradients are averaged after the last backward pass, hence times their number
        penalty = self.penalty() if self.penalty else images.new_zeros(())
        if penalty.requires_grad:  # not without a penalised weight to train
            self.amp.backward(self.ortho_coeff * self.world.size * penalty)

        outputs, cross_entropy = [], images.new_zeros(())
        pieces = self._pieces(images, labels)
        for number, (part, targets) in enumerate(pieces, start=1):
            self._seed(position, number)
            with self._synchronised(number == len(pieces)), nullcontext() if len(labels) else self._buffers_kept():
                with self.amp.autocast():
                    logits = self.forward(part)
                loss = F.cross_entropy(full_type(logits), targets, reduction="sum") / (total / self.world.size)
                if self.world.size > 1:  # by 1, or by NaN if this rank's share of the penalty is not finite: all see it
                    loss = loss * (1 + 0 * penalty.detach())
                self.amp.backward(loss if len(labels) else 0 * loss)
            if len(labels):
                cross_entropy += loss.detach() / self.world.size
            outputs.append(logits.detach())
        finite = self.update(torch.stack([cross_entropy, penalty.detach()]))
        return StepOutput(torch.cat(outputs)[: len(labels)], cross_entropy, penalty.detach(), finite)

    def _pieces(self, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What goes through the network at a time: where only others have images, one that does not count."""
        if not len(labels):
            return [(images.new_zeros(1, *images.shape[1:]), labels.new_zeros(1))]
        shares = [Share(i, self.accumulate).of(len(labels)) for i in range(min(self.accumulate, len(labels)))]
        return [(images[share], labels[share]) for share in shares]

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """Batch norm learns nothing from an image that does not count."""
        before = [buffer.clone() for buffer in self.model.buffers()]
        yield
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(value)

    def _synchronised(self, last: bool) -> AbstractContextManager:
        """Gradients are averaged over the processes in the backward pass of the last piece."""
        return (
            nullcontext() if last or not isinstance(self.forward, DistributedDataParallel) else self.forward.no_sync()
        )

    def _seed(self, position: tuple[int, int], piece: int) -> None:
        """Seed by epoch, step and piece, so that a resumed run draws the same numbers.

        Pieces are counted over all ranks: four of one rank draw what one of each of four would. DataParallel's replicas
        draw each on its own GPU, and count as ranks: ``torch.manual_seed`` alone would give all of them the same masks.
        """
        if self.seed is None:
            return
        name = partial(stream_seed, self.seed, "step", *position)
        seed_everything(name(self.world.rank * self.accumulate + piece))
        replicas = self.forward.device_ids if isinstance(self.forward, nn.DataParallel) else []
        for replica, device in enumerate(replicas):
            with torch.cuda.device(device):
                torch.cuda.manual_seed(name(replica * self.accumulate + piece))


def full_type(logits: Tensor) -> Tensor:
    """Logits in their type but at least float32: the loss of a float64 network is float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels are the first, and among the first five, guesses: (2,) int64."""
    guesses = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
    hits = guesses == labels[:, None]
    return torch.stack([hits[:, 0].sum(), hits.sum()])
