"""Checkpoints: what is in one, and how it is written and read safely.

A checkpoint of this project is a dictionary with ``model`` (the bare network's weights) and ``config``
(its config as YAML); a training run adds what ``--resume`` needs (see ``isonet.training.run``).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isonet.errors import CheckpointError

_WEIGHT_KEYS = ("model", "net", "state_dict")  # ours, the published implementation's, other people's
_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before a name
_SHOWN = 5  # names listed in an error


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` so that at every moment a whole file lies there, the former or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would hide the run from colleagues
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dictionary in a checkpoint file, on the CPU. Nothing in the file is ever executed.

    Raises ``CheckpointError`` for a file that is missing, is no checkpoint, or holds other objects
    than tensors, numbers, text and containers of them.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises nearly every kind for a damaged or hostile file
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path}: not a checkpoint that can be read safely, as plain weights ({type(error).__name__}: {reason})"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__} where a dictionary of weights is expected")
    return state


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a checkpoint file into ``model``, whose device and type stay; returns ``model``.

    Takes this project's checkpoints, those of the published implementation (``{"net": ...}``) and a
    bare state dictionary, with or without ``module.`` before the names. Raises ``CheckpointError``,
    with ``model`` unchanged, for a file that is not one of these or belongs to another network.
    """
    load_state(model, weights_of(read_checkpoint(path), path), path)
    return model


def weights_of(state: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The weights inside a checkpoint, under the names of the bare network."""
    inner: Any = next((state[key] for key in _WEIGHT_KEYS if isinstance(state.get(key), dict)), state)
    weights = {_bare_name(str(name)): value for name, value in inner.items()}
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        keys = ", ".join(str(key) for key in list(state)[:_SHOWN]) or "nothing"
        raise CheckpointError(f"{path}: holds no state dictionary (found {keys})")
    return weights


def load_state(model: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Copy ``weights`` into ``model``, all or nothing; ``path`` is for the message."""
    own = model.state_dict()
    problems = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{path}: belongs to another network than the config describes ({found})")
    model.load_state_dict(weights)


def _bare_name(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
