"""A training run: from a config to a folder with checkpoints, log and metrics."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from yacs.config import CfgNode

from isonet.agreement import SAME_CONFIG, SAME_DATA, config_facts
from isonet.classes import shortened
from isonet.config import uses_channels_last
from isonet.data import build_loader
from isonet.data.build import build_source
from isonet.errors import CheckpointError, NonFiniteError, Stopped, UserError
from isonet.files.checkpoint import Checkpoint
from isonet.files.progress import Progress
from isonet.files.run_folder import AUTO, RunFolder, checkpoints_to_resume, run_folder
from isonet.files.storage import FolderLock, remove_leftovers, replace_link, write_file, writing_to
from isonet.models import build_model
from isonet.signals import StopSignals
from isonet.training.changes import changes, resumed_cfg, resumed_classes
from isonet.training.devices import describe, place, seed_everything, set_precision
from isonet.training.distributed import World
from isonet.training.failure import explained, ranks
from isonet.training.finetune import classes_of_head, freeze, start_from, weights_to_start_from
from isonet.training.log import keep_for_file, list_skipped, log_to_file, note_failure, versions
from isonet.training.loop import Run, train
from isonet.training.optim import Amp, build_optimizer, unused_warmup_factor
from isonet.training.report import Report, require_tensorboard
from isonet.training.resume import (
    adopt,
    after_restart,
    checkpoint_to_resume,
    restore,
    restore_after_kill,
)

log = logging.getLogger("isonet")


def run_training(
    cfg: CfgNode, output: str, gpus: str | None = None, resume: str | None = None, overwrite: bool = False
) -> RunFolder:
    """Train the network of ``cfg`` in this process or, under torchrun, on all ranks, and return the run's folder.

    See ``train_on_ranks`` for the arguments.
    """
    keep_for_file()
    with ranks(gpus) as (world, devices):
        return train_on_ranks(cfg, output, world, devices, resume, overwrite)


def train_on_ranks(
    cfg: CfgNode, output: str, world: World, devices: list[torch.device], resume: str | None, overwrite: bool
) -> RunFolder:
    """Train the network of ``cfg`` on connected ranks, and return the folder of the run.

    output: the folder's name. devices: the devices of this rank. resume, overwrite: see ``checkpoints_to_resume``.
    Raises ``UserError`` for everything that the user can correct, and ``Stopped`` after a signal.
    """
    with (
        StopSignals(quiet=not world.is_main, launched=bool(world.launch)) as stop,
        ExitStack() as locks,
        explained(world, stop),
    ):
        with world.agreed(SAME_CONFIG) as facts:
            folder = run_folder(cfg, output)
            lock = FolderLock(folder.path) if world.is_main else nullcontext()
            locks.enter_context(lock)
            restored = world.is_main and restore_after_kill(folder)
            facts.update(config_facts(cfg))
        resume, overwrite = after_restart(folder, world, resume, overwrite)
        checkpoint = world.from_main(lambda: checkpoint_to_resume(folder, resume, overwrite, restored))
        run, changed = build_run(cfg, folder, world, devices, checkpoint)
        launchers = world.gather(world.launch.launcher if world.launch else "")
        with _opened(run, lock, resume, overwrite, checkpoint is None, launchers):
            _announce(run)
            try:
                if checkpoint:
                    for change in changed:
                        log.warning("resuming with another value of %s", change)
                    if world.is_main:
                        adopt(folder, checkpoint.path, run.progress)
                    log.info("resuming %s after %s", checkpoint.path, run.progress)
                del checkpoint  # it contains a second copy of the weights
                tensorboard, images = run.cfg.RUNTIME.TENSORBOARD, run.val_loader.num_images
                report = Report(folder, tensorboard, run.progress.history, images, world.is_main)
                with explained(world, stop), report:  # nested, so that the log contains the explanation, too
                    _train(run, report, stop)
            except (UserError, Stopped, KeyboardInterrupt) as error:
                if world.is_main:
                    _log_end(folder, error)
                raise
    return folder


def build_run(
    cfg: CfgNode, folder: RunFolder, world: World, devices: list[torch.device], checkpoint: Checkpoint | None
) -> tuple[Run, list[str]]:
    """Return the run, in the state of ``checkpoint`` if there is one, and a list of changes from the earlier run.

    Raises ``UserError`` for any error in the config or the checkpoint.
    """
    num_gpus, accumulate = len(devices) * world.size, cfg.SOLVER.ACCUMULATE
    weights = None if checkpoint else weights_to_start_from(cfg, world)
    download(cfg, world)
    with world.agreed(SAME_DATA) as facts:
        if checkpoint:
            cfg = resumed_cfg(checkpoint, cfg, num_gpus)
        if cfg.RUNTIME.TENSORBOARD and world.is_main:
            require_tensorboard()
        set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
        seed_everything(cfg.RUNTIME.SEED)
        model = build_model(cfg)
        head = start_from(model, weights)
        freeze(model, cfg)
        # On several ranks, a CUDA graph would release the gradients only after the whole backward pass
        channels_last = uses_channels_last(cfg, devices[0].type)
        forward = place(model, devices, channels_last, cfg.RUNTIME.COMPILE, replayed=not world.launch)
        source = build_source(cfg, "train")
        names, outputs = source.classes, cfg.DATASET.NUM_CLASSES
        classes = resumed_classes(checkpoint, names) if checkpoint else classes_of_head(head, names, outputs)
        source = source.relabelled(classes, Path(cfg.DATASET.ROOT) / cfg.DATASET.NAME / "train")
        train_loader = build_loader(cfg, "train", devices, world.share, source)
        if world.launch:
            facts.update(source.facts("train"))
        source = build_source(cfg, "val", classes)
        val_loader = build_loader(cfg, "val", devices, world.share, source)
        if world.launch:
            facts.update(source.facts("val"))
        optimizer, amp = build_optimizer(model, cfg), Amp(cfg.RUNTIME.AMP, devices[0])
        progress, changed, num_images = Progress(), [], train_loader.num_images
        if checkpoint:
            progress = restore(checkpoint, model, optimizer, amp, num_images)
            changed = list(changes(checkpoint, cfg, num_images, num_gpus))
    run = Run(
        cfg=cfg, folder=folder, world=world, devices=devices, model=model, forward=forward, optimizer=optimizer,
        amp=amp, train_loader=train_loader, val_loader=val_loader, progress=progress, accumulate=accumulate,
    )  # fmt: skip
    return run, changed


def download(cfg: CfgNode, world: World) -> None:
    """Download the data set on one rank per machine while the others wait, if DATASET.DOWNLOAD is set."""
    with world.agreed():
        if cfg.DATASET.DOWNLOAD and world.launch and world.launch.local_rank == 0:
            build_source(cfg, "val")  # the archive has both parts


def _train(run: Run, report: Report, stop: StopSignals) -> None:
    start, progress, max_epochs = time.perf_counter(), run.progress, run.cfg.SOLVER.MAX_EPOCHS
    if progress.epoch >= max_epochs:
        log.info("nothing to do: %d epochs are finished (SOLVER.MAX_EPOCHS %d)", progress.epoch, max_epochs)
    try:
        train(run, report, stop)
    finally:
        if run.world.is_main:
            list_skipped({"train": run.train_loader, "val": run.val_loader}, run.folder.skipped)
    log.info(
        "best top-1 %.2f %% in epoch %d, %.0f s, run in %s",
        progress.best_top1, progress.best_epoch, time.perf_counter() - start, run.folder.path,
    )  # fmt: skip


def _announce(run: Run) -> None:
    """Log the network, the data set, the devices and the steps."""
    cfg, loader, batch = run.cfg, run.train_loader, run.global_batch
    parameters = sum(p.numel() for p in run.model.parameters())
    log.info(
        "training a network of depth %d (%s parameters) on %s on %s",
        cfg.ISON.DEPTH, f"{parameters:,}", cfg.DATASET.NAME, describe(run.devices, run.world.size),
    )  # fmt: skip
    if batch > loader.num_images:
        log.warning("a step takes more images than there are: lower SOLVER.TRAIN_BATCH_SIZE or SOLVER.ACCUMULATE")
    if (count := len(loader.classes)) < (outputs := cfg.DATASET.NUM_CLASSES):
        resumed = run.progress.history or run.progress.part
        remedy = f"set DATASET.NUM_CLASSES to {count}{' and start another run with another --output' * bool(resumed)}"
        message = "DATASET.NUM_CLASSES is %d, but %s has %d classes (%s), and the other outputs are never right: %s"
        log.warning(message, outputs, cfg.DATASET.NAME, count, shortened(loader.classes), remedy)
    if (every := cfg.ISON.ORTHO_EVERY) > (steps := loader.epoch_steps * cfg.SOLVER.MAX_EPOCHS):
        log.warning("ISON.ORTHO_EVERY %d: no step of the run has the penalty, since the run has %d steps", every, steps)
    left_out = loader.num_images - loader.epoch_images
    log.info(
        "%d images for training, %d a step, %d steps an epoch%s, %d images for validation",
        loader.num_images, batch, len(loader),
        f" that leaves out {left_out} images (SOLVER.DROP_LAST)" if left_out else "", run.val_loader.num_images,
    )  # fmt: skip
    if unused := unused_warmup_factor(cfg):
        log.warning("%s", unused)


@contextmanager
def _opened(
    run: Run, lock: FolderLock | nullcontext, resume: str | None, overwrite: bool, afresh: bool, launchers: list[str]
) -> Iterator[None]:
    """Create and lock the folder of the run on rank 0, and write the config and the versions of the run.

    At the end of the ``with`` block, the former run is put back if this run replaced it and saved nothing.
    """
    folder, world = run.folder, run.world
    with world.agreed():  # all other user errors are raised before anything is written
        if world.is_main:
            with writing_to(folder.path):
                folder.path.mkdir(parents=True, exist_ok=True)
                # A folder that is locked only now did not exist at the start: another run may have used it since
                newly = isinstance(lock, FolderLock) and lock.acquire()
                if newly and checkpoints_to_resume(folder, resume, overwrite) and afresh:
                    raise CheckpointError(f"{folder.path}: another process has just started and ended this run")
                remove_leftovers(folder.path)
    try:
        with world.agreed():
            if world.is_main:
                with writing_to(folder.path):
                    if overwrite or (resume == AUTO and afresh):
                        folder.set_former_aside()
                    write_file(folder.config, run.cfg.dump())
                    write_file(folder.versions, json.dumps({**versions(), "launchers": launchers}, indent=2) + "\n")
                    replace_link(folder.log)
                    log_to_file(folder.log)
                for file in folder.misnamed():
                    log.warning("%s was saved at another epoch or step than its name says, and is ignored", file)
        yield
    finally:
        if world.is_main:
            with suppress(OSError):  # the next start puts it back
                folder.restore_former()


def _log_end(folder: RunFolder, error: BaseException) -> None:
    if folder.latest.exists() and not isinstance(error, (Stopped, NonFiniteError)):  # their messages say more
        log.info("%s is complete: resume with the same command and --resume (or --resume auto)", folder.latest)
    note_failure(folder.log, error)
