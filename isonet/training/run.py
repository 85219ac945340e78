"""A training run: from a config to a folder with checkpoints, log and metrics."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn
from yacs.config import CfgNode

from isonet.config import global_batch
from isonet.data import build_loader
from isonet.data.processes import explain_dead_workers
from isonet.errors import CheckpointError, NonFiniteError, Stopped, StorageError, UserError
from isonet.models import build_model
from isonet.run_folder import RunFolder, run_folder
from isonet.storage import FolderLock, reason, remove_leftovers, write_file
from isonet.training.amp import Amp
from isonet.training.changes import changes, keep_global_batch
from isonet.training.devices import describe, explain_out_of_memory, place, seed_everything, set_precision
from isonet.training.events import require_tensorboard
from isonet.training.fetch import fetch
from isonet.training.finetune import check_same_parts, freeze, note_other_classes, start_from
from isonet.training.log import keep_for_file, log_to_file, note_failure, versions
from isonet.training.optim import build_optimizer
from isonet.training.peers import explain_lost_peers, processes
from isonet.training.report import Report
from isonet.training.restarts import after_restart, launcher
from isonet.training.resume import AUTO, LATEST, checkpoint_to_resume, take_over
from isonet.training.state import Progress, restore_state
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
        num_gpus, accumulate = len(devices) * world.size, cfg.SOLVER.ACCUMULATE
        if found:
            cfg = keep_global_batch(found[1], found[0], cfg, num_gpus)
        if cfg.RUNTIME.TENSORBOARD and world.leads:
            require_tensorboard()
        set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
        seed_everything(cfg.RUNTIME.SEED)
        if found:
            check_same_parts(found[1], found[0], cfg)
        model = build_model(cfg)
        head_of = None if found else start_from(model, cfg, world)
        freeze(model, cfg)
        # A CUDA graph would let no gradient go before the backward pass has ended
        forward = place(model, devices, cfg.RUNTIME.CHANNELS_LAST, cfg.RUNTIME.COMPILE, replayed=not world.launched)
        fetch(cfg, world)
        train_loader = build_loader(cfg, "train", devices, share=world.share)
        val_loader = build_loader(cfg, "val", devices, train_loader.classes, world.share)
        note_other_classes(head_of, train_loader.classes)
        amp = Amp(cfg.RUNTIME.AMP, devices[0])
        optimizer = build_optimizer(model, cfg)
        progress = Progress()
        if found:
            path, state = found
            progress = restore_state(state, path, model, optimizer, amp, train_loader)
            differences = list(changes(state, path, cfg, train_loader, num_gpus))
        world.gather(None)  # whatever can be wrong with the request was found, on all processes, up to here

        # From here on the folder is this run's
        launchers = world.gather(launcher())
        if world.leads:
            _open_folder(folder, lock, cfg, resume, overwrite, found is None, launchers)
        log.info("training %s on %s", _title(cfg, model), describe(devices, world.size))
        if global_batch(cfg, num_gpus) > train_loader.num_images:
            log.warning("a step takes more images than there are: lower SOLVER.TRAIN_BATCH_SIZE or SOLVER.ACCUMULATE")
        log.info(
            "%d images for training, %d a step, %d for validation",
            train_loader.num_images, global_batch(cfg, num_gpus), val_loader.num_images,
        )  # fmt: skip
        report = Report(folder, cfg.RUNTIME.TENSORBOARD, progress.history, world.leads)
        trainer = Trainer(
            cfg, folder, model, forward, optimizer, amp, devices, train_loader, val_loader, progress, world, accumulate,
            report,
        )  # fmt: skip
        try:
            if found:
                for difference in differences:
                    log.warning("resuming with another value of %s", difference)
                if world.leads:
                    take_over(folder, path, progress)
                log.info("resuming %s after %s", path, progress)
                del found, state  # a second copy of the weights
            with _explained(world, stop), report:  # in here, so that the log hears of it, too
                trainer.fit(stop)
        except (UserError, Stopped, KeyboardInterrupt) as error:
            if world.leads:
                _note_end(folder, error)
            raise
    return folder


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


def _title(cfg: CfgNode, model: nn.Module) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    return f"a network of depth {cfg.ISON.DEPTH} ({parameters:,} parameters) on {cfg.DATASET.NAME}"
