"""Finds the weights in the dictionary of a checkpoint, and their names in the bare network."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from isonet.classes import shortened
from isonet.errors import CheckpointError
from isonet.files.pickles import Unread, refusal, unread_in

log = logging.getLogger("isonet")

# Keys of this project, of the published implementation and of others; averages of the weights last
_WEIGHT_KEYS = ("model", "net", "state_dict", "model_state_dict", "state_dict_ema", "model_ema")
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and torch.compile add these prefixes to names
_AVERAGED = "n_averaged"  # torch's AveragedModel counts the averaged updates beside the weights of its ``module``


def weights_of(state: dict[str, Any], path: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """Return the weights in a checkpoint, under the names of the bare network. prefix: see ``load_weights``.

    Logs a warning about ignored objects and about further weights.
    """
    keys = [key for key in _WEIGHT_KEYS if _tensors(state.get(key))]
    inner: dict[Any, Any] = state[keys[0]] if keys else state
    if beside := _beside(inner):
        log.warning("%s: entries among the weights that are not tensors are ignored: %s", path, shortened(beside))
        inner = {name: value for name, value in inner.items() if name not in beside}
    named = _tensors(inner)
    if not inner or len(named) < len(inner):
        if unread := unread_in(inner):
            need = f"its weights need {shortened(unread)}, which this code does not call"
            whole = next((key for key in _WEIGHT_KEYS if isinstance(state.get(key), Unread)), None)
            why = refusal(need, f'file["{whole}"].state_dict()') if whole else refusal(need)
            raise CheckpointError(f"{path}: {why}")
        found = shortened([key if isinstance(key, str) else type(key).__name__ for key in state]) or "nothing"
        raise CheckpointError(f"{path}: the file contains no state dictionary (found {found})")
    if unread := unread_in({key: value for key, value in state.items() if value is not inner}) if keys else []:
        log.warning("%s: objects of these classes beside the weights are ignored: %s", path, shortened(unread))
    if keys[1:]:
        log.warning("%s: the weights in %r are used, and the weights in %s are not", path, keys[0], ", ".join(keys[1:]))
    pairs = [(_bare_name(name), value) for name, value in named.items()]
    if prefix:
        pairs = _below(pairs, f"{prefix.rstrip('.')}.", path)
    weights = dict(pairs)
    if len(weights) < len(pairs):
        twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        raise CheckpointError(f"{path}: some weights occur twice, with and without a wrapper ({shortened(twice)})")
    return weights


def _tensors(inner: Any) -> dict[str, Tensor]:
    items = inner.items() if isinstance(inner, dict) else ()
    return {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}


def _beside(inner: Any) -> list[str]:
    """Return the names of the entries that are no weights. They have no dot, and the names of the weights do."""
    if not any("." in name for name in _tensors(inner)):
        return []
    averaged = all(str(name).startswith("module.") for name in inner if name != _AVERAGED)
    return [
        name for name, value in inner.items()
        if isinstance(name, str) and "." not in name
        and ((name == _AVERAGED and averaged) if isinstance(value, Tensor) else not unread_in(value))
    ]  # fmt: skip


def _below(pairs: list[tuple[str, Tensor]], prefix: str, path: str | Path) -> list[tuple[str, Tensor]]:
    """Return the weights whose names begin with ``prefix``, under their names without the prefix."""
    below = [(_bare_name(name[len(prefix) :]), value) for name, value in pairs if name.startswith(prefix)]
    if not below:
        common = [f"{name}." for name, _ in Counter(name.partition(".")[0] for name, _ in pairs).most_common()]
        raise CheckpointError(f"{path}: no name begins with {prefix}; the names begin with {shortened(common)}")
    return below


def prefix_hint(own: list[str], weights: dict[str, Tensor]) -> str:
    """Return a hint with the prefix of the network's names in ``weights``, or "" without a common prefix."""
    prefixes = (name.removesuffix(own[0]) for name in weights if name.endswith(f".{own[0]}"))
    found = next((prefix for prefix in prefixes if all(prefix + name in weights for name in own)), "")
    return f'; its names begin with {found}: load_weights(model, FILE, prefix="{found}")' if found else ""


def _bare_name(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name
