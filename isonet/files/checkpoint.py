"""Checkpoints: their content, and how they are written and read safely.

A checkpoint of this project is a dictionary with ``model`` (the bare network's weights), ``config`` (its config as
YAML) and ``isonet`` (the version that wrote it). A training run adds the entries that ``--resume`` needs (see
``isonet.training.loop.Run.save``).
"""

from __future__ import annotations

import logging
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from isonet import __version__
from isonet.classes import shortened
from isonet.config import parse_cfg
from isonet.errors import CheckpointError, printable
from isonet.files.archive import read_hashed, unpack, write_archive
from isonet.files.described import differing_keys
from isonet.files.pickles import ArchiveError, Unread, refusal
from isonet.files.safetensors import is_safetensors, unpack_safetensors
from isonet.files.storage import reason, write_file
from isonet.files.weights import prefix_hint, weights_of

log = logging.getLogger("isonet")

HEAD = "head."  # prefix of the parameters that depend on the number of classes


class OtherNetworkError(CheckpointError):
    """Raised for weights of a network that the config does not describe."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file and the dictionary in it.

    The properties check the file's entries, because any program may have written it. An optional entry that is missing
    or malformed is None. Other malformed entries raise an error that names the file.
    """

    path: Path
    state: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint file (see ``read_checkpoint``)."""
        return cls(Path(path), read_checkpoint(path))

    @cached_property
    def cfg(self) -> CfgNode | None:
        """The config of the run that wrote the file, frozen."""
        return self.config() if isinstance(self.state.get("config"), str) else None

    def config(self, opts: Sequence[Any] = ()) -> CfgNode:
        """Return the config of the run that wrote the file, with ``KEY VALUE`` pairs merged on top.

        Raises ``CheckpointError`` if the file has none.
        """
        if not isinstance(self.state.get("config"), str):
            raise CheckpointError(f"{self.path}: the file contains no config; name the training config with --cfg")
        return parse_cfg(self.state["config"], f"{self.path} (its config)", opts)

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes in the order of their labels."""
        classes = self.state.get("classes")
        return classes if isinstance(classes, list) and all(isinstance(name, str) for name in classes) else None

    @property
    def epoch(self) -> int | None:
        """The number of finished epochs."""
        epoch = self.state.get("epoch")
        return epoch if type(epoch) is int else None

    @property
    def num_gpus(self) -> int | None:
        """The number of GPUs that the run used, on all ranks."""
        devices = self.state.get("num_devices")
        return devices if type(devices) is int and devices > 0 else None

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The weights under the names of the bare network."""
        return weights_of(self.state, self.path)

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into ``model``, all of them or, if they do not fit, none."""
        try:
            load_state(model, self.weights, self.path)
        except OtherNetworkError as error:
            if self.cfg is None:
                raise
            hint = "the file contains its own config: leave out --cfg and overrides of these keys"
            raise OtherNetworkError(f"{error}; {hint}") from None


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` atomically: at every moment, ``path`` is a complete file, the former or the new file.

    Raises ``StorageError``, with the former file intact, if it cannot be written.
    """
    write_file(path, lambda file: write_archive(state, file))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the dictionary in a checkpoint file, on the CPU. Nothing in the file is executed.

    The file is a .safetensors file or was written by ``torch.save``. An ``Unread`` replaces each object in it that is
    not a tensor, a number, text or a container of these. Raises ``CheckpointError`` if the file is missing, damaged or
    no checkpoint.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for its writer
            raise CheckpointError(f"{path} is not a file, so it is not a checkpoint")
        file, digest = read_hashed(path)
        state = unpack_safetensors(file.getvalue()) if is_safetensors(file.getbuffer()) else unpack(file, digest)
        if isinstance(state, Unread):
            whole = f"it holds a whole {printable(state.name):.80} instead of a dictionary of weights"
            raise refusal(whole, "file.state_dict()")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({reason(error)})") from None
    except ArchiveError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: the file holds a {type(state).__name__} instead of a dictionary of weights")
    writer = str(state.get("isonet", ""))
    if _numbers(writer) > _numbers(__version__):
        log.warning("%s was written by isonet %.40s, newer than this version, %s", path, writer, __version__)
    return state


def load_weights(model: nn.Module, path: str | Path, prefix: str = "") -> nn.Module:
    """Load a checkpoint file into ``model``, whose device and type do not change, and return ``model``.

    The file is a checkpoint of this project or of the published implementation (``{"net": ...}``), or a bare state
    dictionary, in 16, 32 or 64 bits, with or without ``module.`` before the names, or a .safetensors file.

    prefix: the text before the names of ``model`` in the file, such as ``net.`` if a LightningModule has the network as
    ``self.net``. Weights with other names are not loaded.

    Raises ``CheckpointError``, with ``model`` unchanged, for any other file, for weights of another network, and for
    values that are not finite.
    """
    load_state(model, weights_of(read_checkpoint(path), path, prefix), path)
    return model


def load_state(model: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Copy ``weights`` into ``model``, all of them or, if they do not fit, none. path: the file that messages name."""
    model.load_state_dict(fitted(model, weights, path))


def load_matching(model: nn.Module, weights: dict[str, Tensor], path: str | Path) -> list[str]:
    """Load ``weights`` as ``load_state`` does, except for a last layer with another number of classes.

    Returns the names of the tensors that keep their values, which is empty if all tensors are loaded.
    """
    own = model.state_dict()
    kept = [
        name
        for name in own
        if name.startswith(HEAD) and name in weights and len(own[name]) != len(weights[name])
        and own[name].shape[1:] == weights[name].shape[1:]
    ]  # fmt: skip
    load_state(model, {**weights, **{name: own[name] for name in kept}}, path)
    return kept


def fitted(model: nn.Module, weights: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Return ``weights`` in the types of ``model``. Loading the result cannot fail.

    Raises ``OtherNetworkError`` for weights of another network, and ``CheckpointError`` for non-finite values.
    """
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
        found = "; ".join(f"{len(names)} {kind}: {shortened(names)}" for kind, names in problems.items() if names)
        keys = differing_keys(weights, own)
        raise OtherNetworkError(
            f"{path}: the file belongs to another network than the config describes{keys and f': {keys}'} ({found})"
            f"{prefix_hint(list(own), weights)}"
        )
    converted = {name: _converted(name, weights[name], own[name].dtype, path) for name in own}
    if bad := [name for name, value in converted.items() if not value.isfinite().all()]:
        raise CheckpointError(
            f"{path}: the file contains infinite values or NaN in {len(bad)} of {len(own)} tensors ({shortened(bad)}): "
            "it was saved after training had diverged; use an earlier one"
        )
    return converted


def _converted(name: str, value: Tensor, dtype: torch.dtype, path: str | Path) -> Tensor:
    """Return ``value`` as a plain tensor of ``dtype``, which must be the same kind of number."""
    plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and value.device.type == "cpu"
    if not plain or value.is_quantized or value.is_complex() or value.is_floating_point() != dtype.is_floating_point:
        raise CheckpointError(f"{path}: {name} of type {value.dtype} cannot be a weight of type {dtype}")
    return value.detach().to(dtype)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,9}", version)[:3]]
