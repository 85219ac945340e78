"""The training loop: it trains, saves, stops, evaluates and records."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import nn
from yacs.config import CfgNode

from isonet import __version__
from isonet.config import global_batch
from isonet.data import Loader
from isonet.errors import NonFiniteError, Stopped, UserError
from isonet.files.archive import write_archive
from isonet.files.progress import Progress
from isonet.files.run_folder import RunFolder
from isonet.files.storage import append_line
from isonet.profiling import StepProfile
from isonet.signals import StopRequested, StopSignals
from isonet.training.distributed import World, lockstep
from isonet.training.failure import first_non_finite
from isonet.training.finetune import train_mode, trained_parts
from isonet.training.log import EpochDisplay
from isonet.training.metrics import EpochSums, NonFiniteStep, evaluate
from isonet.training.optim import Amp, learning_rate_at, set_learning_rate
from isonet.training.report import Report, singular_values
from isonet.training.step import TrainStep

log = logging.getLogger("isonet")


@dataclass(kw_only=True)
class Run:
    """The objects that the loop uses.

    forward: ``model``, or a wrapper that compiles it or spreads it over devices or ranks. accumulate: SOLVER.ACCUMULATE
    as the user set it; the value in ``cfg`` keeps the global batch of a resumed run.
    """

    cfg: CfgNode
    folder: RunFolder
    world: World
    devices: list[torch.device]
    model: nn.Module
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    amp: Amp
    train_loader: Loader
    val_loader: Loader
    progress: Progress
    accumulate: int

    @property
    def num_gpus(self) -> int:
        """The number of GPUs on all ranks. A CPU counts as one GPU."""
        return len(self.devices) * self.world.size

    @property
    def global_batch(self) -> int:
        """The number of images in a training step, on all ranks."""
        return global_batch(self.cfg, self.num_gpus)

    def rate(self, epoch: int, taken: int = 0) -> float:
        """Return the learning rate of the step that follows the first ``taken`` images of an epoch."""
        return learning_rate_at(self.cfg, epoch, self.num_gpus, taken / self.train_loader.epoch_images)

    def penalty_weight(self, epoch: int, step: int) -> int:
        """Return k at every k-th step of the run (ISON.ORTHO_EVERY k), otherwise 0. step: counted from 1 in the epoch.

        If k is 1, every step has the weight 1.
        """
        every = self.cfg.ISON.ORTHO_EVERY
        return 0 if ((epoch - 1) * self.train_loader.epoch_steps + step) % every else every

    def save(self, epoch: int, step: int, best: bool = False) -> None:
        """Save a checkpoint of ``epoch`` after ``step`` (0: after the epoch), with tensors, numbers and text only."""
        for loader in (self.train_loader, self.val_loader):  # rank 0 also lists the unreadable images of other ranks
            for skipped in self.world.gather(dict(loader.skipped)) if self.cfg.DATASET.ON_ERROR == "skip" else ():
                loader.skipped.update(skipped)
        if not self.world.is_main:
            return
        weights = self.model.state_dict()
        # NCHW for RUNTIME.CHANNELS_LAST, too: safetensors and other readers refuse NHWC order
        weights.update({name: value.contiguous() for name, value in weights.items()})
        state = {
            "model": weights,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.amp.scaler.state_dict(),  # empty without fp16
            **self.progress.as_dict(),
            "num_devices": self.num_gpus,
            "accumulate": self.accumulate,
            "isonet": __version__,
            "config": self.cfg.dump(),
            "classes": list(self.train_loader.classes),
            "num_images": self.train_loader.num_images,
        }
        self.folder.save(lambda file: write_archive(state, file), epoch, step, self.cfg.RUNTIME.KEEP, best)


def train(run: Run, report: Report, stop: StopSignals) -> None:
    """Train from ``run.progress`` to SOLVER.MAX_EPOCHS.

    All ranks save, stop and fail at the same step; rank 0 writes. Raises ``Stopped`` after a signal, and
    ``NonFiniteError`` after a non-finite loss, gradient or weight.
    """
    cfg, world, progress = run.cfg, run.world, run.progress
    solver, runtime, device = cfg.SOLVER, cfg.RUNTIME, run.devices[0]
    step = TrainStep(
        world.data_parallel(run.forward, device), trained_parts(run.model), run.optimizer, cfg.ISON.ORTHO_COEFF,
        amp=run.amp, world=world, accumulate=solver.ACCUMULATE, seed=runtime.SEED, strided=cfg.ISON.ORTHO_STRIDED,
    )  # fmt: skip

    seldom = cfg.ISON.ORTHO_EVERY > 1
    if seldom:
        step.set_last_penalty(progress.last_penalty)

    for epoch in range(progress.epoch + 1, solver.MAX_EPOCHS + 1):
        sums = EpochSums(device, world, progress.part, last_penalty=seldom)
        run.train_loader.set_epoch(epoch, skip=sums.taken)
        run.val_loader.set_epoch(epoch)
        train_mode(run.model)
        with saved_if_stopped(run, epoch, sums):
            with display_of(run, epoch, sums) as display, profile_of(run, epoch) as profile:
                for images, labels, total in sums.timed(lockstep(run.train_loader, world, stop)):
                    set_learning_rate(run.optimizer, run.rate(epoch, sums.taken))
                    position = epoch, sums.steps + 1
                    output = step(images, labels, total, position, run.penalty_weight(*position))
                    sums.add(output, labels, total)
                    profile.step()
                    display.advance()
                    if sums.steps % runtime.LOG_EVERY == 0:  # reading the sums waits for the device
                        display.show(sums.steps, sums.means(run.model))
                    if runtime.SAVE_EVERY and sums.steps % runtime.SAVE_EVERY == 0:
                        save_within_epoch(run, epoch, sums)
            means = sums.means(run.model)
            world.broadcast(run.model.buffers())  # such as batch norm's, which differ between ranks
            result = evaluate(run.forward, lockstep(run.val_loader, world, stop), device, run.amp, world)
            if not math.isfinite(result.loss):  # the training loss does not include the last update
                raise NonFiniteStep(0)
        row = {"epoch": epoch, "learning_rate": run.rate(epoch), **means, **result.as_row()}
        if world.is_main:
            row |= singular_values(run.model, cfg, epoch)
        best = progress.record(row, sums.timing(epoch, result.seconds))
        run.save(epoch, 0, best)
        if world.is_main:
            record(run)
            report.update()


@contextmanager
def saved_if_stopped(run: Run, epoch: int, sums: EpochSums) -> Iterator[None]:
    """After a signal, save the steps already done in the epoch. Turn a signal or a non-finite value into its error."""
    try:
        try:
            yield
        except StopRequested as signal:
            if sums.steps:
                save_within_epoch(run, epoch, sums)  # this may raise NonFiniteStep
            raise Stopped(stop_message(run.folder, signal, epoch, sums.steps)) from None
    except NonFiniteStep as failure:
        raise NonFiniteError(non_finite_message(run, epoch, failure.step, sums.steps)) from None


def display_of(run: Run, epoch: int, sums: EpochSums) -> EpochDisplay:
    """Return the progress display of an epoch, which only rank 0 shows."""
    steps = sums.steps + len(run.train_loader)
    return EpochDisplay(epoch, run.cfg.SOLVER.MAX_EPOCHS, sums.steps, steps, hidden=not run.world.is_main)


def profile_of(run: Run, epoch: int) -> StepProfile:
    """Return the profile of a run's first steps that RUNTIME.PROFILE requests. Only rank 0 writes it."""
    first = epoch == 1 and run.world.is_main
    return StepProfile(run.cfg.RUNTIME.PROFILE if first else 0, run.devices[0], run.folder.profile)


def save_within_epoch(run: Run, epoch: int, sums: EpochSums) -> None:
    """Save the steps already done in the epoch. Raises ``NonFiniteStep`` instead if the weights are non-finite."""
    sums.means(run.model)
    run.progress.part = sums.part()
    run.save(epoch, sums.steps)


def record(run: Run) -> None:
    """Append the finished epoch to ``metrics.jsonl`` and ``timing.jsonl``, and log it."""
    row, timing = run.progress.history[-1], run.progress.timing[-1]
    append_line(run.folder.metrics, json.dumps(row, allow_nan=False))
    append_line(run.folder.timing, json.dumps(timing, allow_nan=False))
    log.info(
        "epoch %d/%d: rate %.4g, cross entropy %.4f, penalty %.4g, train top-1 %.2f, top-1 %.2f, top-5 %.2f, "
        "%.0f images/s, %.1f s waiting for data",
        row["epoch"], run.cfg.SOLVER.MAX_EPOCHS, row["learning_rate"], row["cross_entropy"], row["penalty"],
        row["train_top1"], row["top1"], row["top5"], timing["images_per_second"], timing["data_wait_seconds"],
    )  # fmt: skip


def stop_message(folder: RunFolder, signal: StopRequested, epoch: int, steps: int) -> str:
    """Return where a signal stopped the run, and how to resume it."""
    if not steps and not folder.latest.exists():
        return f"by {signal} before the first step: nothing was saved, and nothing is lost"
    where = f"in epoch {epoch} after step {steps}" if steps else f"after epoch {epoch - 1}"
    return (
        f"by {signal} {where}; saved in {folder.latest}: resume with the same command and --resume (or --resume auto)"
    )


def non_finite_message(run: Run, epoch: int, bad_step: int, steps: int) -> str:
    """Return what became non-finite and what to try. bad_step: see ``NonFiniteStep``. steps: their number so far."""
    latest, cfg = run.folder.latest, run.cfg
    saved = f"the last good checkpoint is {latest}" if latest.exists() else "nothing was saved"
    what = "the loss or its gradient" if bad_step else "the network or its validation loss"
    rate = run.rate(epoch, max(0, (bad_step or steps) - 1) * run.global_batch)
    first = where_non_finite(run, epoch, bad_step)
    return (
        f"{what} is not finite in epoch {epoch}, step {bad_step or steps}, at a rate of {rate:g}"
        f"{f', first in {first}' if first else ''}; {saved}. "
        "Try a lower SOLVER.BASE_LR, SOLVER.WARMUP True, or another ISON.ORTHO_COEFF"
        f"{', or RUNTIME.AMP bf16' if cfg.RUNTIME.AMP == 'fp16' else ''}"
    )


def where_non_finite(run: Run, epoch: int, bad_step: int) -> str:
    """Return the first non-finite value of a failed step or, for ``bad_step`` 0, of the first batch of validation.

    The step is repeated with its own weights, which have not changed since (see ``GuardedUpdate``).
    """
    loader, part, ison = run.train_loader if bad_step else run.val_loader, run.progress.part, run.cfg.ISON
    taken, steps = (part.taken, part.sums["steps"]) if part else (0, 0)
    skip = taken + (bad_step - 1 - steps) * run.global_batch if bad_step else 0
    loader.set_epoch(epoch, skip)
    run.model.eval()
    if bad_step:
        train_mode(run.model)
    coeff = ison.ORTHO_COEFF * run.penalty_weight(epoch, bad_step) if bad_step else 0.0
    chunks = len(run.devices) * run.cfg.SOLVER.ACCUMULATE
    where = ""
    with suppress(UserError, StopIteration, RuntimeError):  # the failure matters more than where it began
        images, labels = next(iter(loader))
        where = first_non_finite(run.model, images, labels, run.amp, coeff, chunks, ison.ORTHO_STRIDED)
    return next(filter(None, run.world.gather(where)), "")
