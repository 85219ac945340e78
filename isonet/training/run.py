"""A training run: from a config to a folder with checkpoints, log and metrics."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from yacs.config import CfgNode

from isonet.config import global_batch
from isonet.data.processes import explain_dead_workers
from isonet.errors import CheckpointError, NonFiniteError, Stopped, StorageError, UserError
from isonet.files.run_folder import RunFolder, run_folder
from isonet.files.storage import FolderLock, reason, remove_leftovers, write_file
from isonet.training.devices import describe, explain_out_of_memory
from isonet.training.log import keep_for_file, log_to_file, note_failure, versions
from isonet.training.parts import Parts, build_parts
from isonet.training.peers import explain_lost_peers, processes
from isonet.training.report import Report
from isonet.training.restarts import after_restart, launcher
from isonet.training.resume import AUTO, LATEST, checkpoint_to_resume, take_over
from isonet.training.schedule import unused_warmup_factor
from isonet.training.stop import StopSignals
from isonet.training.trainer import Trainer
from isonet.training.world import World

__all__ = ["AUTO", "LATEST", "run_training"]

log = logging.getLogger("isonet")


def run_training(
    cfg: CfgNode,
    output: str,
    gpus: str | None = None,
    resume: str | None = None,
    overwrite: bool = False,
) -> RunFolder:
    """Train the network of ``cfg``; returns the folder that holds the run.

    gpus: ids such as "0,1"; None: every visible GPU, else the CPU. Processes of a launcher take one each.
    resume: a checkpoint or run folder to go on from; "": this run's latest; "auto": that, if there is one;
    None: start afresh.
    overwrite: remove a run that the folder already holds.
    Raises ``UserError`` for everything that the user can put right, and ``Stopped`` after a signal.
    """
    keep_for_file()
    folder = run_folder(cfg, output)
    with (
        processes(gpus) as (world, devices),
        StopSignals(quiet=not world.leads, launched=world.launched) as stop,
        _lock(folder, world) as lock,
        _explained(world, stop),
    ):
        resume, overwrite = after_restart(folder, world, resume, overwrite)
        found = world.from_leader(lambda: checkpoint_to_resume(folder, resume, overwrite))
        parts = build_parts(cfg, found, world, devices)
        origin = found[0] if found else None
        del found  # a second copy of the weights
        world.gather(None)  # whatever can be wrong with the request was found, on all processes, up to here

        # From here on the folder is this run's
        launchers = world.gather(launcher())
        if world.leads:
            _open_folder(folder, lock, parts.cfg, resume, overwrite, origin is None, launchers)
        _announce(parts, devices, world)
        report = Report(folder, parts.cfg.RUNTIME.TENSORBOARD, parts.progress.history, world.leads)
        trainer = Trainer(
            parts.cfg, folder, parts.model, parts.forward, parts.optimizer, parts.amp, devices, parts.train_loader,
            parts.val_loader, parts.progress, world, cfg.SOLVER.ACCUMULATE, report,
        )  # fmt: skip
        try:
            if origin:
                _go_on(parts, origin, folder, world)
            with _explained(world, stop), report:  # in here, so that the log hears of it, too
                trainer.fit(stop)
        except (UserError, Stopped, KeyboardInterrupt) as error:
            if world.leads:
                _note_end(folder, error)
            raise
    return folder


def _announce(parts: Parts, devices: list[torch.device], world: World) -> None:
    """Log what is trained, on what, in what steps."""
    cfg, loader = parts.cfg, parts.train_loader
    batch = global_batch(cfg, len(devices) * world.size)
    parameters = sum(p.numel() for p in parts.model.parameters())
    log.info(
        "training a network of depth %d (%s parameters) on %s on %s",
        cfg.ISON.DEPTH, f"{parameters:,}", cfg.DATASET.NAME, describe(devices, world.size),
    )  # fmt: skip
    if batch > loader.num_images:
        log.warning("a step takes more images than there are: lower SOLVER.TRAIN_BATCH_SIZE or SOLVER.ACCUMULATE")
    left_out = loader.num_images - loader.epoch_images
    log.info(
        "%d images for training, %d a step, %d steps an epoch%s, %d images for validation",
        loader.num_images, batch, len(loader),
        f" that leaves out {left_out} images (SOLVER.DROP_LAST)" if left_out else "", parts.val_loader.num_images,
    )  # fmt: skip
    if unused := unused_warmup_factor(cfg):
        log.warning("%s", unused)


def _go_on(parts: Parts, origin: Path, folder: RunFolder, world: World) -> None:
    """Make the folder's record end where the checkpoint ``origin`` does, and log what is other than it was."""
    for change in parts.changes:
        log.warning("resuming with another value of %s", change)
    if world.leads:
        take_over(folder, origin, parts.progress)
    log.info("resuming %s after %s", origin, parts.progress)


def _lock(folder: RunFolder, world: World) -> FolderLock | nullcontext:
    return FolderLock(folder.path) if world.leads else nullcontext()


@contextmanager
def _explained(world: World, stop: StopSignals) -> Iterator[None]:
    """What torch raises as exceptions of this project, with a sentence for people."""
    with explain_lost_peers(world, stop), explain_dead_workers(), explain_out_of_memory():
        yield


def _note_end(folder: RunFolder, error: BaseException) -> None:
    if folder.latest.exists() and not isinstance(error, (Stopped, NonFiniteError)):  # which say more
        log.info("%s is whole: the same command with --resume (or --resume auto) goes on from there", folder.latest)
    note_failure(folder.log, error)


def _open_folder(
    folder: RunFolder,
    lock: FolderLock | nullcontext,
    cfg: CfgNode,
    resume: str | None,
    overwrite: bool,
    afresh: bool,
    launchers: list[str],
) -> None:
    """Make the folder, lock it, and write down what the run is, before it starts."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        # Newly locked, the folder was not there: another run may have made it, and be finished, since
        newly = isinstance(lock, FolderLock) and lock.acquire()
        if newly and checkpoint_to_resume(folder, resume, overwrite) and afresh:
            raise CheckpointError(f"{folder.path}: another process has just begun and ended this run")
        remove_leftovers(folder.path)
        if overwrite or (resume == AUTO and afresh):
            folder.clear()
        write_file(folder.config, cfg.dump())
        write_file(folder.versions, json.dumps({**versions(), "launchers": launchers}, indent=2) + "\n")
        log_to_file(folder.log)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{folder.path}: cannot be written ({reason(error)}); see OUTPUT_DIR") from None
