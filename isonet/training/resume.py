"""Resuming: after a kill or a restart, the newest undamaged checkpoint, a matching folder, and the restored state."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isonet.errors import CheckpointError
from isonet.files.checkpoint import Checkpoint, fitted
from isonet.files.progress import Progress, count, finite
from isonet.files.run_folder import AUTO, RunFolder, checkpoints_to_resume
from isonet.files.storage import link_file, write_file, writing_to
from isonet.training.distributed import World
from isonet.training.optim import Amp

log = logging.getLogger("isonet")

_NEEDED = ("model", "optimizer", "epoch", "best_top1", "best_epoch", "history")


def restore_after_kill(folder: RunFolder) -> bool:
    """Put the former run back if its replacement was killed before the first save, and return whether it was put back.

    Raises ``StorageError`` if this fails, or if a file of the run is a folder, a pipe, a socket or a device.
    """
    folder.check()
    with writing_to(folder.path):
        return folder.restore_former()


def after_restart(folder: RunFolder, world: World, resume: str | None, overwrite: bool) -> tuple[str | None, bool]:
    """Return ``resume`` and ``overwrite``, with other values if torchrun has restarted the run in ``folder``.

    torchrun repeats its command after a failure, and when machines join or leave. If this launcher started the run, the
    run is resumed, regardless of the command line. If the run has saved nothing, it starts again and keeps its log.

    TORCHELASTIC_RESTART_COUNT is not sufficient: it counts the failures of one machine, and stays 0 if a machine joins.
    """
    launchers = set(world.gather(world.launch.launcher if world.launch else "")) - {""}
    if not world.is_main or not launchers & set(_started_by(folder)):
        return resume, overwrite
    if folder.resumable():
        return AUTO, False
    folder.set_log_aside()
    folder.clear()
    return resume, overwrite


def _started_by(folder: RunFolder) -> list[str]:
    try:
        found = json.loads(folder.versions.read_text(encoding="utf-8"))["launchers"]
        return [str(name) for name in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def checkpoint_to_resume(folder: RunFolder, resume: str | None, overwrite: bool, restored: bool) -> Checkpoint | None:
    """Return the newest undamaged checkpoint of ``checkpoints_to_resume``, or None for a new run.

    restored: the result of ``restore_after_kill``. If it is True, this function raises ``CheckpointError``, because the
    user may not expect to resume the former run. The next start resumes it.
    """
    files = checkpoints_to_resume(folder, resume, overwrite)
    if files and restored:
        raise CheckpointError(
            f"{folder.path}: a start with --overwrite was killed before its first save, and the former run is back: "
            "repeat this command to resume the former run, or replace it with --overwrite"
        )
    return newest_whole(files) if files else None


def newest_whole(candidates: Sequence[Path]) -> Checkpoint:
    """Return the first checkpoint that can be read, and warn about each damaged checkpoint before it.

    candidates: the checkpoint files, newest first. Raises ``CheckpointError`` if all of them are damaged.
    """
    damaged: dict[Path, CheckpointError] = {}
    for path in candidates:
        if any(path.samefile(other) for other in damaged):  # latest.pt is another name of one of the others
            continue
        try:
            checkpoint = Checkpoint.read(path)
        except CheckpointError as error:
            damaged[path] = error
            continue
        for why in damaged.values():
            log.warning("%s; using the checkpoint before it, %s", why, path)
        return checkpoint
    others = f", and so are the {len(damaged) - 1} before it" if len(damaged) > 1 else ""
    raise CheckpointError(f"{next(iter(damaged.values()))}{others}; start over, or from another checkpoint")


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, amp: Amp, num_images: int
) -> Progress:
    """Restore ``model``, ``optimizer`` and ``amp`` from ``checkpoint``, and return the progress of its run.

    The optimizer keeps the settings of its groups, which are from the config, and receives the momentum. num_images:
    the number of training images. Raises ``CheckpointError``, with the model unchanged, for a state that does not fit.
    """
    state, path = checkpoint.state, checkpoint.path
    if missing := [key for key in _NEEDED if key not in state]:
        raise CheckpointError(
            f"{path} cannot be resumed: it lacks {', '.join(missing)}. A new run can start from its weights, with "
            f"MODEL.INIT_FROM {path} and without --resume; it may also be evaluated"
        )
    if state.get("layout") and state.get("part"):
        raise CheckpointError(
            f"{path} was saved within an epoch of shards in an order that this version no longer has; resume from a "
            "checkpoint that ends an epoch"
        )
    weights = fitted(model, checkpoint.weights, path)
    try:
        progress = Progress.from_dict(state, num_images)
        optimizer.load_state_dict(_momentum(state["optimizer"], optimizer))
        if state.get("scaler") and amp.scaler.is_enabled():
            amp.scaler.load_state_dict(_scale(state["scaler"], amp.scaler.state_dict()))
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path}: its optimizer or metrics do not fit this run ({error})") from None
    model.load_state_dict(weights)  # last, since it cannot fail
    return progress


def _momentum(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the momentum of ``state`` with this run's settings. ``load_state_dict`` would accept other shapes.

    Each buffer receives the memory format of its parameter, which fused optimizers need.
    """
    groups = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in state["param_groups"]] != [group["params"] for group in groups]:
        raise ValueError("other groups of parameters")
    buffers = {index: values["momentum_buffer"] for index, values in state["state"].items()}
    if all(buffer is None for buffer in buffers.values()):  # SOLVER.MOMENTUM 0, or no step yet
        return {"state": {}, "param_groups": groups}
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    if set(buffers) != set(parameters):
        raise ValueError("the momentum of other parameters")
    checked = {}
    for index, parameter in parameters.items():
        buffer = buffers[index]
        if buffer.shape != parameter.shape or not buffer.isfinite().all():
            raise ValueError(f"momentum number {index} has another shape, or is non-finite")
        checked[index] = {"momentum_buffer": torch.empty_like(parameter).copy_(buffer)}
    return {"state": checked, "param_groups": groups}


def _scale(state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the scale that fp16 has reached, with this run's settings."""
    scale = finite(state["scale"])
    if not scale > 0:
        raise ValueError("the scale of fp16 is not above 0")
    return {**own, "scale": scale, "_growth_tracker": count(state["_growth_tracker"])}


def adopt(folder: RunFolder, path: Path, progress: Progress) -> None:
    """Reset ``folder`` to the state of the checkpoint at ``path``: its metrics, its best, and nothing newer."""
    # A run that was killed may have logged more, or less, than it saved
    write_file(folder.metrics, _as_lines(progress.history))
    write_file(folder.timing, _as_lines(progress.timing))
    if path.parent.resolve() == folder.path.resolve():
        _repair(folder, path, progress)
    else:
        if _epoch_of(best := RunFolder(path.parent).best) == progress.best_epoch:
            write_file(folder.best, best.read_bytes())
        write_file(folder.latest, path.read_bytes())  # so that --resume works even if nothing is saved after this
    if _epoch_of(folder.best) != progress.best_epoch:  # the next epoch is then the best
        progress.best_top1, progress.best_epoch = -1.0, 0


def _repair(folder: RunFolder, path: Path, progress: Progress) -> None:
    """Make ``path`` the newest checkpoint and, if a kill prevented that, the best checkpoint."""
    for newer in folder.numbered()[::-1]:  # these are damaged, and RUNTIME.KEEP would count them
        if newer.samefile(path):
            break
        folder.set_aside(newer)
    if not (folder.latest.exists() and folder.latest.samefile(path)):
        log.warning("%s was not the newest undamaged checkpoint: it is now %s", folder.latest, path)
        link_file(path, folder.latest)
    if progress.best_epoch == progress.epoch and not progress.part and _epoch_of(folder.best) != progress.epoch:
        link_file(path, folder.best)


def _as_lines(rows: list[dict[str, float]]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _epoch_of(best: Path) -> int | None:
    """Return the epoch of a best checkpoint, or None if it cannot be read."""
    try:
        return Checkpoint.read(best).epoch if best.exists() else None
    except CheckpointError as error:
        log.warning("%s; the best of the remaining epochs will replace it", error)
        return None
