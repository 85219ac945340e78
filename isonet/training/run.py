"""A training run: from a config to a folder with checkpoints, log and metrics."""

from __future__ import annotations

import json
import logging

from torch import nn
from yacs.config import CfgNode

from isonet.data import build_loader
from isonet.data.processes import explain_dead_workers
from isonet.errors import NonFiniteError, Stopped, StorageError, UserError
from isonet.models import build_model
from isonet.run_folder import RunFolder, run_folder
from isonet.storage import FolderLock, reason, remove_leftovers, write_file
from isonet.training.amp import Amp
from isonet.training.devices import (
    describe,
    explain_out_of_memory,
    pick_devices,
    place,
    seed_everything,
    set_precision,
)
from isonet.training.log import keep_for_file, log_to_file, note_failure, versions
from isonet.training.optim import build_optimizer
from isonet.training.resume import LATEST, checkpoint_to_resume, take_over
from isonet.training.state import Progress, changes, restore_state
from isonet.training.stop import StopSignals
from isonet.training.trainer import Trainer

__all__ = ["LATEST", "run_training"]

log = logging.getLogger("isonet")


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
    Raises ``UserError`` for everything that the user can put right, and ``Stopped`` after a signal.
    """
    keep_for_file()
    folder = run_folder(cfg, output)
    with StopSignals() as stop, FolderLock(folder.path) as lock, explain_dead_workers(), explain_out_of_memory():
        found = checkpoint_to_resume(folder, resume, overwrite)
        devices = pick_devices(gpus)
        set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
        seed_everything(cfg.RUNTIME.SEED)
        model = build_model(cfg)
        forward = place(model, devices, cfg.RUNTIME.CHANNELS_LAST, cfg.RUNTIME.COMPILE)
        train_loader = build_loader(cfg, "train", devices)
        val_loader = build_loader(cfg, "val", devices, train_loader.classes)
        amp = Amp(cfg.RUNTIME.AMP, devices[0])
        optimizer = build_optimizer(model, cfg)
        progress = Progress()
        if found:
            path, state = found
            progress = restore_state(state, path, model, optimizer, amp, train_loader, devices)
            differences = changes(state, path, cfg, train_loader, devices)

        # Whatever can be wrong with the request was found above: from here on the folder is this run's
        _open_folder(folder, lock, cfg, resume, overwrite)
        log.info("training %s on %s", _title(cfg, model), describe(devices))
        log.info("%d images for training, %d for validation", train_loader.num_images, val_loader.num_images)
        trainer = Trainer(cfg, folder, model, forward, optimizer, amp, devices, train_loader, val_loader, progress)
        try:
            if found:
                for difference in differences:
                    log.warning("resuming with another value of %s", difference)
                take_over(folder, path, progress)
                log.info("resuming %s after %s", path, progress)
                del found, state  # a second copy of the weights
            with explain_dead_workers(), explain_out_of_memory():  # in here, so that the log hears of it, too
                trainer.fit(stop)
        except (UserError, Stopped, KeyboardInterrupt) as error:
            if folder.latest.exists() and not isinstance(error, (Stopped, NonFiniteError)):  # which say more
                log.info("%s is whole: the same command with --resume alone goes on from there", folder.latest)
            note_failure(folder.log, error)
            raise
    return folder


def _open_folder(folder: RunFolder, lock: FolderLock, cfg: CfgNode, resume: str | None, overwrite: bool) -> None:
    """Make the folder, lock it, and write down what the run is, before it starts."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if lock.acquire():  # the folder was not there: another run may have made it, and be finished, since
            checkpoint_to_resume(folder, resume, overwrite)
        remove_leftovers(folder.path)
        if overwrite:
            folder.clear()
        write_file(folder.config, cfg.dump())
        write_file(folder.versions, json.dumps(versions(), indent=2) + "\n")
        log_to_file(folder.log)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{folder.path}: cannot be written ({reason(error)}); see OUTPUT_DIR") from None


def _title(cfg: CfgNode, model: nn.Module) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    return f"a network of depth {cfg.ISON.DEPTH} ({parameters:,} parameters) on {cfg.DATASET.NAME}"
