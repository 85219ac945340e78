"""The config of a run: the defaults of ``keys.py``, with a YAML file and ``KEY VALUE`` pairs merged on top.

Only functions that build objects read the config. Layers and loops take plain arguments.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from isonet import __version__
from isonet.config.checks import contradictions
from isonet.config.file import parse_pairs, read_pairs, shown, where
from isonet.config.habits import BASES, in_place_of
from isonet.config.keys import BEFORE_THE_KEY, KEYS, SMALL_IMAGE, default_cfg
from isonet.config.kinds import AUTO, FilePath
from isonet.errors import ConfigError

# The side of a square image in pixels, if DATASET.IMAGE_SIZE does not give it
_OWN_IMAGE_SIZE = {"CIFAR10": 32, "CIFAR100": 32, "digits": 8}
_FOLDER_IMAGE_SIZE = 224

COMMAND_LINE = "the command line"

Pairs = Iterable[tuple[Any, Any]]


def load_cfg(path: str | Path | None = None, opts: Sequence[Any] = ()) -> CfgNode:
    """Return the frozen config: the defaults with a YAML file, if given, and ``KEY VALUE`` pairs merged on top.

    opts: dotted keys and values in turn, e.g. ``["ISON.DEPTH", 20]``. A value may be text, as on a command line.
    Raises ``ConfigError`` for a file that cannot be read, an unknown key, a value of the wrong type or out of range,
    and keys that contradict each other.
    """
    if path is None:
        return _merged([], opts)
    path = Path(os.path.expanduser(path))
    return _merged([(where(path), read_pairs(path))], opts, by_user=True)


def parse_cfg(text: str, source: str, opts: Sequence[Any] = ()) -> CfgNode:
    """Return the frozen config of YAML text that a run wrote to a checkpoint, with ``opts`` merged on top.

    A key that is missing from the text has its value in ``BEFORE_THE_KEY``, or else its default.
    """
    return _written(parse_pairs(text, source), where(source), opts)


def read_written_cfg(path: Path) -> CfgNode:
    """Return the frozen config of a file that a run wrote, such as its ``config.yaml``; see ``parse_cfg``."""
    return _written(read_pairs(path), where(path))


def _written(pairs: list[tuple[str, Any]], source: str, opts: Sequence[Any] = ()) -> CfgNode:
    """Return the config of ``pairs``, which this version of isonet or another one wrote.

    Former versions allowed RUNTIME.CHECKPOINT_ACTIVATIONS with batch norm. This function turns the key off for such a
    config, because the key only saves memory.
    """
    for key, value in pairs:
        if key not in KEYS and (problem := _no_key(default_cfg(), key, value)):
            newer = f"a version of isonet that is newer than {__version__} may have written it; update isonet"
            raise ConfigError(f"{source}: {problem}; or {newer}")
    has_bn = any(key == "ISON.HAS_BN" and str(value).lower() == "true" for key, value in pairs)
    without = [("RUNTIME.CHECKPOINT_ACTIVATIONS", False)] if has_bn else []
    return _merged([(source, [*BEFORE_THE_KEY.items(), *pairs, *without])], opts)


def check_overrides(opts: Sequence[Any]) -> None:
    """Raise ``ConfigError`` for an unknown key, or a value of the wrong type or out of range, in ``KEY VALUE`` pairs.

    This checks overrides of a config that is not known yet because it is in a checkpoint.
    """
    _merge(default_cfg(), _in_pairs(opts), COMMAND_LINE)


def image_size(cfg: CfgNode) -> int:
    """Return the side in pixels of the network's square input images."""
    return cfg.DATASET.IMAGE_SIZE or _OWN_IMAGE_SIZE.get(cfg.DATASET.NAME, _FOLDER_IMAGE_SIZE)


def uses_small_images(cfg: CfgNode) -> bool:
    """Return whether images have at most 64 pixels a side.

    Such images use CIFAR networks and CIFAR augmentation, and are kept in memory.
    """
    return image_size(cfg) <= SMALL_IMAGE


def global_batch(cfg: CfgNode, num_gpus: int = 1) -> int:
    """Return the number of images in a training step on ``num_gpus`` GPUs of one or several processes."""
    return cfg.SOLVER.TRAIN_BATCH_SIZE * cfg.SOLVER.ACCUMULATE * num_gpus


def uses_channels_last(cfg: CfgNode, device: str) -> bool:
    """Return whether images and weights are in NHWC memory order on a device of type ``device``, "cpu" or "cuda"."""
    runtime = cfg.RUNTIME
    if runtime.CHANNELS_LAST == AUTO:
        return device == "cpu" or runtime.AMP != "off" or runtime.TF32
    return bool(runtime.CHANNELS_LAST)


def flat(cfg: CfgNode) -> dict[str, Any]:
    """Return a dictionary from the dotted name of every key to its value."""
    return {key: attrgetter(key)(cfg) for key in KEYS}


def _merged(sources: Iterable[tuple[str, Pairs]], opts: Sequence[Any] = (), by_user: bool = False) -> CfgNode:
    """Return the defaults with the pairs of each source, then ``opts``, merged on top, checked and frozen.

    by_user: whether a user wrote the sources, and not a run. ~ and $NAME are expanded only in the paths of a user.
    """
    cfg = default_cfg()
    given_by: dict[str, str] = {}  # for messages: dotted key -> the last source that gave it
    for source, pairs in [*sources, (COMMAND_LINE, _in_pairs(opts))]:
        given_by.update(dict.fromkeys(_merge(cfg, pairs, source, by_user or source == COMMAND_LINE), source))
    for key, problem in contradictions(cfg, image_size(cfg)):
        raise ConfigError(f"{given_by.get(key, 'the defaults')}: {key} {problem}")
    cfg.freeze()
    return cfg


def _in_pairs(opts: Sequence[Any]) -> Pairs:
    names = [key if isinstance(key, str) else "" for key in opts[::2]]
    for name in names:
        if "=" in name:
            pair = name.lstrip("+").replace("=", " ", 1)
            raise ConfigError(f"overrides are KEY VALUE pairs, without =: write {shown(pair)[1:-1]}")
    if len(opts) % 2:
        stray = [key for key, name in zip(opts[::2], names, strict=True) if name not in KEYS]
        what = f"{shown(stray[0])} is not a key" if stray else f"{shown(opts[-1])} has no value"
        raise ConfigError(
            f"overrides are KEY VALUE pairs, but {what} (write ISON.DEPTH 20, without =, and quote a value that has "
            "spaces)"
        )
    return zip(opts[::2], opts[1::2], strict=True)


def _merge(cfg: CfgNode, pairs: Pairs, source: str, by_user: bool = True) -> list[str]:
    """Set the values of ``pairs`` in ``cfg``, each in the type and the range of its key, and return the keys."""
    merged = []
    for key, value in pairs:
        if not isinstance(key, str) or key not in KEYS:
            if problem := _no_key(cfg, key, value):
                raise ConfigError(f"{source}: {problem}")
            continue
        kind = KEYS[key].kind
        try:
            read: Any = kind.expanded(value) if by_user and isinstance(kind, FilePath) else kind.read(value)
        except (ValueError, TypeError, OverflowError):  # OverflowError: too large for a float
            raise ConfigError(f"{source}: {key} takes {kind.takes}, got {shown(value)}") from None
        except KeyError as error:
            raise ConfigError(f"{source}: {key} {shown(value)}: the variable {error} is not set") from None
        if fault := kind.fault(read):
            raise ConfigError(f"{source}: {key} {fault}")
        node, _, leaf = key.rpartition(".")
        (cfg[node] if node else cfg)[leaf] = read
        merged.append(key)
    return merged


def _no_key(cfg: CfgNode, key: Any, value: Any) -> str:
    """Return why ``key`` is not a key, or "" if it is a node without keys, such as one whose keys are comments."""
    if isinstance(key, str) and key in cfg:
        if value is None:
            return ""
        return f"{key} holds keys, such as {key}.{next(iter(cfg[key]))}, and takes no value, got {shown(value)}"
    name = shown(key).strip("'")
    if name.lower().strip("_") in BASES:
        return f"{name}: a config has no base, and all keys are optional; copy the keys of the other file into this one"
    known = [key for key in (text.split()[0] for text in in_place_of(name.rpartition(".")[2])) if key in KEYS]
    if known:
        return f"unknown key {name}; did you mean {known[-1]}?"
    any_case = {known.upper(): known for known in KEYS}
    near = difflib.get_close_matches(name.upper(), any_case, n=1, cutoff=0.5)
    hint = f"did you mean {any_case[near[0]]}?" if near else f"the top-level keys are {', '.join(cfg)}"
    return f"unknown key {name}; {hint}"
