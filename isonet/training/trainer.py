"""The loop over epochs: train, evaluate, save; stop where nothing is lost."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from isonet.config import global_batch
from isonet.data import Loader
from isonet.errors import NonFiniteError, Stopped, UserError
from isonet.files.run_folder import RunFolder
from isonet.files.storage import append_line, write_file
from isonet.training.amp import Amp
from isonet.training.epoch import NonFiniteStep, finite_means, train_epoch
from isonet.training.evaluate import Evaluation, evaluate, list_skipped
from isonet.training.failure import first_non_finite
from isonet.training.finetune import train_mode, trained_parts
from isonet.training.lockstep import Lockstep
from isonet.training.log import EpochDisplay
from isonet.training.optim import set_learning_rate
from isonet.training.profile import StepProfile
from isonet.training.report import Report
from isonet.training.schedule import learning_rate_at
from isonet.training.spectrum import spectrum_row
from isonet.training.state import Part, Progress, pack_state
from isonet.training.step import StepOutput, TrainStep
from isonet.training.stop import StopRequested, StopSignals
from isonet.training.sums import EpochSums
from isonet.training.world import World

log = logging.getLogger("isonet")


@dataclass
class Trainer:
    """Trains ``model`` from where ``progress`` says, and leaves what it does in ``folder``.

    Of several processes the leading one writes. All of them save, stop and fail at the same step.
    """

    cfg: CfgNode
    folder: RunFolder
    model: nn.Module
    forward: nn.Module  # model, or it compiled, or its wrapper over several GPUs
    optimizer: torch.optim.Optimizer
    amp: Amp
    devices: list[torch.device]
    train_loader: Loader
    val_loader: Loader
    progress: Progress
    world: World
    accumulate: int  # as the user asked for it; the config's keeps the global batch of a resumed run
    report: Report

    @property
    def num_gpus(self) -> int:
        """Of all processes."""
        return len(self.devices) * self.world.size

    def fit(self, stop: StopSignals) -> None:
        """Train until MAX_EPOCHS, saving after each epoch, and within it where the config or a signal asks for it.

        Raises ``Stopped`` after a signal and ``NonFiniteError`` where the numbers are no longer finite.
        """
        start, max_epochs = time.perf_counter(), self.cfg.SOLVER.MAX_EPOCHS
        forward = self.world.synchronised(self.forward, self.devices[0])
        solver, coeff, seed = self.cfg.SOLVER, self.cfg.ISON.ORTHO_COEFF, self.cfg.RUNTIME.SEED
        strided = self.cfg.ISON.ORTHO_STRIDED
        trained = trained_parts(self.model)  # frozen ones have no penalty
        step = TrainStep(
            forward, trained, self.optimizer, coeff, self.amp, self.world, solver.ACCUMULATE, seed, strided
        )
        if self.progress.epoch >= max_epochs:
            log.info("nothing to do: %d epochs are finished (SOLVER.MAX_EPOCHS %d)", self.progress.epoch, max_epochs)
        try:
            while self.progress.epoch < max_epochs:
                self._epoch(self.progress.epoch + 1, step, stop)
        finally:
            stop.calm()
            if self.world.leads:
                list_skipped({"train": self.train_loader, "val": self.val_loader}, self.folder.skipped)
        log.info(
            "best top-1 %.2f %% in epoch %d, %.0f s, run in %s",
            self.progress.best_top1, self.progress.best_epoch, time.perf_counter() - start, self.folder.path,
        )  # fmt: skip

    def _epoch(self, epoch: int, step: TrainStep, stop: StopSignals) -> None:
        """Train, evaluate and save one epoch, or what is left of it."""
        sums = EpochSums(self.devices[0], self.world)
        if part := self.progress.part:
            sums.load_state_dict(part.sums)
        self.train_loader.set_epoch(epoch, skip=part.taken if part else 0)
        self.val_loader.set_epoch(epoch)
        batches = Lockstep(self.train_loader, self.world, stop)
        try:
            try:
                means = self._train(epoch, step, sums, batches)
                start = time.perf_counter()
                found = self._evaluate(stop)
            except StopRequested as request:
                if sums.steps:
                    self._save_part(epoch, sums, batches.taken)
                raise Stopped(self._stop_message(request, epoch, sums.steps)) from None
            if not math.isfinite(found.loss):  # the last step's update is not in the training loss yet
                raise NonFiniteStep(0)
        except NonFiniteStep as failure:
            before = max(0, (failure.step or sums.steps) - 1) * global_batch(self.cfg, self.num_gpus)  # images
            message = self._non_finite_message(epoch, failure.step, sums.steps, self._rate(epoch, before))
            raise NonFiniteError(message) from None
        images = means.pop("images")
        row = {"epoch": epoch, "learning_rate": self._rate(epoch), **means,
               "top1": found.top1, "top5": found.top5, "val_loss": found.loss}  # fmt: skip
        if self.world.leads:
            row |= spectrum_row(self.model, self.cfg, epoch)
        timing = {"epoch": epoch, "images_per_second": images / sums.seconds, "data_wait_seconds": sums.waited,
                  "seconds": sums.seconds + time.perf_counter() - start}  # fmt: skip
        self._finish(row, timing)

    def _train(self, epoch: int, step: TrainStep, sums: EpochSums, batches: Lockstep) -> dict[str, float]:
        runtime, done, leads = self.cfg.RUNTIME, sums.steps, self.world.leads
        taken = batches.taken
        display = EpochDisplay(epoch, self.cfg.SOLVER.MAX_EPOCHS, done, done + len(batches), hidden=not leads)
        profile = StepProfile(runtime.PROFILE if epoch == 1 and leads else 0, self.devices[0])

        def take_step(images: Tensor, labels: Tensor, total: int, number: int) -> StepOutput:
            nonlocal taken
            set_learning_rate(self.optimizer, self._rate(epoch, taken))
            taken = batches.taken  # now with this batch
            return step(images, labels, total, (epoch, number))

        def on_step(number: int, means: dict[str, float] | None) -> None:
            profile.step()
            display.advance()
            if means:
                display.show(number, means)
            if runtime.SAVE_EVERY and number % runtime.SAVE_EVERY == 0:
                self._save_part(epoch, sums, batches.taken)

        try:
            with profile:
                means = train_epoch(self.model, take_step, batches, sums, runtime.LOG_EVERY, on_step)
        finally:
            display.close()
        if profile.table:
            write_file(self.folder.profile, profile.table + "\n")
            log.info("where the time of %d steps went: %s", runtime.PROFILE, self.folder.profile)
        return means

    def _rate(self, epoch: int, taken: int = 0) -> float:
        """The rate of the step that follows ``taken`` of the images that the epoch trains on."""
        return learning_rate_at(self.cfg, epoch, self.num_gpus, taken / self.train_loader.epoch_images)

    def _evaluate(self, stop: StopSignals) -> Evaluation:
        self.world.copy_from_leader(self.model.buffers())  # such as batch norm's, of which each process has its own
        return evaluate(
            self.forward, Lockstep(self.val_loader, self.world, stop), self.devices[0], self.amp, self.world
        )

    def _save_part(self, epoch: int, sums: EpochSums, taken: int) -> None:
        """Save the epoch's beginning."""
        finite_means(self.model, sums)  # nothing that is spoilt is saved
        self.progress.part = Part(taken, sums.state_dict())
        self._save(epoch, sums.steps)

    def _save(self, epoch: int, step: int, best: bool = False) -> None:
        self._share_skipped()
        if self.world.leads:
            state = pack_state(
                self.model, self.optimizer, self.amp, self.progress, self.cfg, self.train_loader, self.num_gpus,
                self.accumulate,
            )  # fmt: skip
            self.folder.save(state, epoch, step, self.cfg.RUNTIME.KEEP, best)

    def _share_skipped(self) -> None:
        """Let the leading process know which images others could not read."""
        if self.cfg.DATASET.ON_ERROR == "skip":
            for loader in (self.train_loader, self.val_loader):
                for skipped in self.world.gather(dict(loader.skipped)):
                    loader.skipped.update(skipped)

    def _finish(self, row: dict[str, float], timing: dict[str, float]) -> None:
        """Save and log a whole epoch."""
        epoch = int(row["epoch"])
        improved = self.progress.record(row, timing)
        self._save(epoch, 0, best=improved)
        if not self.world.leads:
            return
        append_line(self.folder.metrics, json.dumps(row, allow_nan=False))
        append_line(self.folder.timing, json.dumps(timing, allow_nan=False))
        log.info(
            "epoch %d/%d: rate %.4g, cross entropy %.4f, penalty %.4g, train top-1 %.2f, top-1 %.2f, top-5 %.2f, "
            "%.0f images/s, %.1f s waiting for data",
            epoch, self.cfg.SOLVER.MAX_EPOCHS, row["learning_rate"], row["cross_entropy"], row["penalty"],
            row["train_top1"], row["top1"], row["top5"], timing["images_per_second"], timing["data_wait_seconds"],
        )  # fmt: skip
        self.report.update()

    def _stop_message(self, request: StopRequested, epoch: int, steps: int) -> str:
        if not steps and not self.folder.latest.exists():
            return f"by {request} before the first step: nothing is lost, and nothing was saved"
        where = f"in epoch {epoch} after step {steps}" if steps else f"after epoch {epoch - 1}"
        latest = self.folder.latest
        how = "the same command with --resume (or --resume auto) goes on from there"
        return f"by {request} {where}; saved in {latest}: {how}"

    def _non_finite_message(self, epoch: int, bad_step: int, steps: int, rate: float) -> str:
        """``bad_step``: the one of ``steps`` whose loss or gradient is not finite; 0: the update after the last."""
        latest = self.folder.latest
        safe = f"the last good checkpoint is {latest}" if latest.exists() else "nothing was saved"
        what = "the loss or its gradient" if bad_step else "the network or its validation loss"
        where = self._first_non_finite(epoch, bad_step)
        return (
            f"{what} is not finite in epoch {epoch}, step {bad_step or steps}, at a rate of {rate:g}"
            f"{f', first in {where}' if where else ''}; {safe}. "
            "Try a lower SOLVER.BASE_LR, SOLVER.WARMUP True, or another ISON.ORTHO_COEFF"
            f"{', or RUNTIME.AMP bf16' if self.cfg.RUNTIME.AMP == 'fp16' else ''}"
        )

    def _first_non_finite(self, epoch: int, bad_step: int) -> str:
        """Repeat the failed step, or the first batch of validation: the weights are those that it had."""
        loader, part = self.train_loader if bad_step else self.val_loader, self.progress.part
        taken, steps = (part.taken, part.sums["steps"]) if part else (0, 0)
        skip = taken + (bad_step - 1 - steps) * global_batch(self.cfg, self.num_gpus)
        loader.set_epoch(epoch, skip=skip if bad_step else 0)
        self.model.eval()
        if bad_step:
            train_mode(self.model)
        coeff = self.cfg.ISON.ORTHO_COEFF if bad_step else 0.0
        where = ""
        # What is to be told is the failure, not why it was not found
        with contextlib.suppress(UserError, StopIteration, RuntimeError):
            images, labels = next(iter(loader))
            chunks = len(self.devices) * self.cfg.SOLVER.ACCUMULATE
            strided = self.cfg.ISON.ORTHO_STRIDED
            where = first_non_finite(self.model, images, labels, self.amp, coeff, chunks, strided)
        return next(filter(None, self.world.gather(where)), "")
