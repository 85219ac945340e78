"""A training run: from a config to a folder with checkpoints, log and metrics."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from yacs.config import CfgNode

from isonet.checkpoint import read_checkpoint, save_checkpoint
from isonet.data import Loader, build_loader
from isonet.errors import CheckpointError, NonFiniteError, UserError
from isonet.models import build_model
from isonet.run_folder import RunFolder, run_folder
from isonet.training.amp import Amp
from isonet.training.devices import describe, pick_devices, place, seed_everything, set_precision
from isonet.training.epoch import NonFiniteLossError, train_epoch
from isonet.training.evaluate import evaluate
from isonet.training.log import EpochDisplay, keep_for_file, log_to_file, note_failure, versions
from isonet.training.optim import build_optimizer, set_learning_rate
from isonet.training.profile import StepProfile
from isonet.training.schedule import learning_rate_at
from isonet.training.state import Progress, changes, pack_state, restore_state
from isonet.training.step import TrainStep

log = logging.getLogger("isonet")

LATEST = ""  # the value of --resume without a checkpoint


def run_training(
    cfg: CfgNode,
    output: str,
    gpus: str | None = None,
    resume: str | None = None,
    overwrite: bool = False,
) -> RunFolder:
    """Train the network of ``cfg``; returns the folder that holds the run.

    gpus: ids such as "0,1"; None: every visible GPU, else the CPU.
    resume: a checkpoint or run folder to go on from; "": this run's latest; None: start afresh.
    overwrite: remove a run that the folder already holds.
    Raises ``UserError`` for everything that the user can put right.
    """
    keep_for_file()
    folder = run_folder(cfg, output)
    resume_from = _checkpoint_to_resume(folder, resume, overwrite)
    devices = pick_devices(gpus)
    set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
    seed_everything(cfg.RUNTIME.SEED)
    model = build_model(cfg)
    train_loader = build_loader(cfg, "train", devices)
    val_loader = build_loader(cfg, "val", devices, train_loader.classes)
    forward = place(model, devices, cfg.RUNTIME.CHANNELS_LAST, cfg.RUNTIME.COMPILE)
    amp = Amp(cfg.RUNTIME.AMP, devices[0])
    optimizer = build_optimizer(model, cfg)
    progress = restore_state(resume_from, model, optimizer, amp, devices) if resume_from else Progress()

    # Whatever can be wrong with the request was found above: from here on the folder is this run's
    _open_folder(folder, cfg, overwrite)
    log.info("training %s on %s", _title(cfg, model), describe(devices))
    log.info("%d images for training, %d for validation", train_loader.num_images, val_loader.num_images)
    run = _Run(cfg, folder, model, forward, optimizer, amp, devices, train_loader, val_loader, progress)
    try:
        if resume_from:
            run.take_over(resume_from)
        run.fit()
    except UserError as error:
        note_failure(folder.log, error)
        raise
    return folder


@dataclass
class _Run:
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

    def take_over(self, path: Path) -> None:
        """Bring the folder to where the resumed checkpoint was: its metrics and its best."""
        for change in changes(path, self.cfg, self.devices):
            log.warning("resuming with another value of %s", change)
        # A run that was killed may have logged more than it saved
        rows = "".join(json.dumps(row) + "\n" for row in self.progress.history)
        self.folder.metrics.write_text(rows, encoding="utf-8")
        if not self.folder.best.exists():
            best = RunFolder(path.parent).best
            if best.is_file() and read_checkpoint(best).get("epoch") == self.progress.best_epoch:
                shutil.copyfile(best, self.folder.best)
            else:  # the next epoch is the best there is
                self.progress.best_top1, self.progress.best_epoch = -1.0, 0
        log.info("resuming %s after epoch %d", path, self.progress.epoch)

    def fit(self) -> None:
        """Train until MAX_EPOCHS, saving after each epoch."""
        start, max_epochs = time.perf_counter(), self.cfg.SOLVER.MAX_EPOCHS
        step = TrainStep(self.forward, self.model, self.optimizer, self.cfg.ISON.ORTHO_COEFF, self.amp)
        if self.progress.epoch >= max_epochs:
            log.info("nothing to do: %d of %d epochs are finished", self.progress.epoch, max_epochs)
        for epoch in range(self.progress.epoch + 1, max_epochs + 1):
            self._save(self._epoch(epoch, step))
        log.info(
            "best top-1 %.2f %% in epoch %d, %.0f s, run in %s",
            self.progress.best_top1, self.progress.best_epoch, time.perf_counter() - start, self.folder.path,
        )  # fmt: skip

    def _epoch(self, epoch: int, step: TrainStep) -> dict[str, float]:
        """Train and evaluate one epoch; returns its row of metrics."""
        cfg, device = self.cfg, self.devices[0]
        rate = learning_rate_at(cfg, epoch, len(self.devices))
        set_learning_rate(self.optimizer, rate)
        self.train_loader.set_epoch(epoch)
        display = EpochDisplay(epoch, cfg.SOLVER.MAX_EPOCHS, len(self.train_loader))

        profile = StepProfile(cfg.RUNTIME.PROFILE if epoch == 1 else 0, device)

        def on_step(number: int, means: dict[str, float] | None) -> None:
            profile.step()
            display.advance()
            if means:
                display.show(number, means)

        start = time.perf_counter()
        try:
            with profile:
                trained = train_epoch(self.model, step, self.train_loader, device, cfg.RUNTIME.LOG_EVERY, on_step)
        except NonFiniteLossError as error:
            raise NonFiniteError(self._non_finite_message(epoch, error.step, rate)) from None
        finally:
            display.close()
        if profile.table:
            self.folder.profile.write_text(profile.table + "\n", encoding="utf-8")
            log.info("where the time of %d steps went: %s", cfg.RUNTIME.PROFILE, self.folder.profile)
        found = evaluate(self.forward, self.val_loader, device, self.amp)
        if not math.isfinite(found.loss):  # the last step's update is not in the training loss yet
            raise NonFiniteError(self._non_finite_message(epoch, len(self.train_loader), rate))
        row = {"epoch": epoch, "learning_rate": rate, **trained,
               "top1": found.top1, "top5": found.top5, "val_loss": found.loss,
               "seconds": time.perf_counter() - start}  # fmt: skip
        log.info(
            "epoch %d/%d: rate %.4g, cross entropy %.4f, penalty %.4g, train top-1 %.2f, top-1 %.2f, top-5 %.2f, "
            "%.0f images/s, %.1f s waiting for data",
            epoch, cfg.SOLVER.MAX_EPOCHS, rate, row["cross_entropy"], row["penalty"], row["train_top1"],
            row["top1"], row["top5"], row["images_per_second"], row["data_wait_seconds"],
        )  # fmt: skip
        return row

    def _save(self, row: dict[str, float]) -> None:
        improved = self.progress.record(row)
        state = pack_state(
            self.model, self.optimizer, self.amp, self.progress, self.cfg, self.train_loader.classes, self.devices
        )
        if improved:  # first, so that the latest never claims a best that is not there
            save_checkpoint(self.folder.best, state)
        save_checkpoint(self.folder.latest, state)
        with self.folder.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def _non_finite_message(self, epoch: int, step: int, rate: float) -> str:
        safe = (
            f"the last good checkpoint is {self.folder.latest}" if self.folder.latest.exists() else "nothing was saved"
        )
        return (
            f"the loss is not finite in epoch {epoch}, step {step}, at a rate of {rate:g}; {safe}. "
            "Try a lower SOLVER.BASE_LR, SOLVER.WARMUP True, or another ISON.ORTHO_COEFF"
        )


def _checkpoint_to_resume(folder: RunFolder, resume: str | None, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, if any; refuses to touch a run that is already there unasked."""
    if resume is not None and overwrite:
        raise CheckpointError("--resume goes on with a run and --overwrite removes it: give one of them")
    if resume is None:
        if folder.holds_a_run() and not overwrite:
            go_on = "go on with it with --resume, " if folder.latest.exists() else "which had saved nothing yet: "
            raise CheckpointError(
                f"{folder.path} already holds a run: {go_on}replace it with --overwrite, or choose another --output"
            )
        return None
    if resume == LATEST:
        path = folder.latest
    else:
        path = RunFolder(Path(resume)).latest if Path(resume).is_dir() else Path(resume)
    if not path.is_file():
        how = "--overwrite starts afresh" if folder.holds_a_run() else "leave --resume out to start the run"
        raise CheckpointError(f"{path}: no checkpoint to resume; {how}")
    if folder.holds_a_run() and path.resolve() != folder.latest.resolve():
        raise CheckpointError(
            f"{folder.path} holds a run that {path} is not the latest of: choose another --output to resume it into"
        )
    return path


def _open_folder(folder: RunFolder, cfg: CfgNode, overwrite: bool) -> None:
    """Make the folder and write down what the run is, before it starts."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if overwrite:
            folder.clear()
        folder.config.write_text(cfg.dump(), encoding="utf-8")
        folder.versions.write_text(json.dumps(versions(), indent=2) + "\n", encoding="utf-8")
        log_to_file(folder.log)
    except OSError as error:
        raise CheckpointError(f"{folder.path}: cannot be written ({error}); see OUTPUT_DIR") from None


def _title(cfg: CfgNode, model: nn.Module) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    return f"a network of depth {cfg.ISON.DEPTH} ({parameters:,} parameters) on {cfg.DATASET.NAME}"
