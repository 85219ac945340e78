"""The config tree: the defaults, with a YAML file and ``KEY VALUE`` pairs merged on top.

Only builders read the tree; layers and loops take plain arguments.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from isonet.config.checks import CHOICES, SMALL_IMAGE, faults
from isonet.config.file import flatten, parse_pairs, read_pairs, shown, where
from isonet.config.keys import BEFORE_THE_KEY, default_cfg
from isonet.errors import ConfigError

# Side of a square image in pixels, where DATASET.IMAGE_SIZE does not give it.
_OWN_IMAGE_SIZE = {"CIFAR10": 32, "CIFAR100": 32, "digits": 8}
_FOLDER_IMAGE_SIZE = 224
_ITEM_TYPE = {"SOLVER.LR_MILESTONES": int, "DATASET.MEAN": float, "DATASET.STD": float, "MODEL.FREEZE": str}


def load_cfg(path: str | Path | None = None, opts: Sequence[Any] = ()) -> CfgNode:
    """The frozen config of a YAML file (or none) with ``KEY VALUE`` pairs merged on top.

    ``opts`` alternates dotted keys and values, e.g. ``["ISON.DEPTH", 20]``; values may be text as on
    a command line. Raises ``ConfigError`` for a file that cannot be read, an unknown key, a value of
    the wrong type or out of range, and keys that contradict each other.
    """
    draft = _Draft()
    if path is not None:
        draft.merge(read_pairs(Path(path)), where(path))
    return draft.finish(opts)


def parse_cfg(text: str, source: str, opts: Sequence[Any] = ()) -> CfgNode:
    """The frozen config of YAML text that a run wrote, such as a checkpoint carries, with ``opts`` merged on top.

    A key that the text lacks has its value in ``BEFORE_THE_KEY``, or else its default.
    """
    return _written(parse_pairs(text, source), where(source), opts)


def read_written_cfg(path: Path) -> CfgNode:
    """The frozen config of a file that a run wrote, such as its ``config.yaml``, read as ``parse_cfg`` does."""
    return _written(read_pairs(path), where(path))


def _written(pairs: Iterable[tuple[Any, Any]], source: str, opts: Sequence[Any] = ()) -> CfgNode:
    draft = _Draft()
    draft.merge(BEFORE_THE_KEY.items(), source)
    draft.merge(pairs, source)
    return draft.finish(opts)


def image_size(cfg: CfgNode) -> int:
    """Side in pixels of the square images that the network is fed."""
    return cfg.DATASET.IMAGE_SIZE or _OWN_IMAGE_SIZE.get(cfg.DATASET.NAME, _FOLDER_IMAGE_SIZE)


def uses_small_images(cfg: CfgNode) -> bool:
    """Whether images are at most 64 pixels: CIFAR networks, CIFAR augmentation, kept in memory."""
    return image_size(cfg) <= SMALL_IMAGE


def global_batch(cfg: CfgNode, num_gpus: int = 1) -> int:
    """Images of a training step on ``num_gpus`` GPUs, whether they are of one process or of several."""
    return cfg.SOLVER.TRAIN_BATCH_SIZE * cfg.SOLVER.ACCUMULATE * num_gpus


def flat(cfg: CfgNode) -> dict[str, Any]:
    """Every key of the tree, dotted, with its value."""
    return dict(flatten(cfg))


class _Draft:
    """A config in the making: the tree, and for messages who gave each value."""

    def __init__(self) -> None:
        self.cfg = default_cfg()
        self.defaults = flat(self.cfg)
        self.given_by: dict[str, str] = {}  # dotted key -> file or command line

    def merge(self, pairs: Iterable[tuple[Any, Any]], source: str) -> None:
        for key, value in pairs:
            if isinstance(key, str) and isinstance(self.cfg.get(key), CfgNode):
                self._refuse_value_of_node(key, value, source)
                continue
            if not isinstance(key, str) or key not in self.defaults:
                raise ConfigError(f"{source}: {self._unknown(key)}")
            node_path, _, leaf = key.rpartition(".")
            node = self.cfg[node_path] if node_path else self.cfg
            node[leaf] = _coerce(key, value, self.defaults[key], source)
            self.given_by[key] = source

    def finish(self, opts: Sequence[Any]) -> CfgNode:
        """The frozen tree after ``KEY VALUE`` pairs and all checks."""
        if len(opts) % 2:
            raise ConfigError(
                f"overrides come as KEY VALUE pairs, but {shown(opts[-1])} has no value "
                "(write ISON.DEPTH 20, without =, and quote a value that has spaces)"
            )
        self.merge(zip(opts[::2], opts[1::2], strict=True), source="the command line")
        for key, message in faults(self.cfg, image_size(self.cfg)):
            source = self.given_by.get(key)
            raise ConfigError(f"{source}: {key} {message}" if source else f"{key} {message}")
        self.cfg.freeze()
        return self.cfg

    def _refuse_value_of_node(self, key: str, value: Any, source: str) -> None:
        if value is None or value == {}:  # what is left of a node when all its keys are commented out
            return
        keys = " and ".join(f"{key}.{leaf}" for leaf in list(self.cfg[key])[:2])
        raise ConfigError(f"{source}: {key} holds keys, such as {keys}, and takes no value, got {shown(value)}")

    def _unknown(self, key: Any) -> str:
        if not isinstance(key, str):
            return f"a key is text such as ISON.DEPTH, got {shown(key)}"
        for known in self.defaults:
            if key.startswith(f"{known}."):
                return f"{known} takes one value, and no keys such as {shown(key[len(known) + 1 :])} below it"
        any_case = {known.upper(): known for known in self.defaults}
        near = difflib.get_close_matches(key[:100].upper(), any_case, n=1, cutoff=0.5)
        hint = f"did you mean {any_case[near[0]]}?" if near else f"at the top are {', '.join(self.cfg)}"
        return f"unknown key {key if len(key) <= 60 else shown(key)}; {hint}"


def _coerce(key: str, value: Any, default: Any, source: str) -> Any:
    """``value`` in the type of ``default``; text is read as on a command line, so ``1e-4`` is a float."""
    wanted = type(default)
    if wanted is str and value is False and key in CHOICES:
        value = "off"  # which YAML reads as a boolean
    try:
        if wanted is list:
            return [_item(item, _ITEM_TYPE[key]) for item in _items(value, single=_ITEM_TYPE[key] is str)]
        if wanted in (int, float):
            return _number(value, wanted)
        if wanted is bool and isinstance(value, str):
            value = {"true": True, "false": False}[value.strip().lower()]
        if type(value) is wanted:
            return value
    except (ValueError, TypeError, KeyError, OverflowError):  # OverflowError: no float is as large
        pass
    raise ConfigError(f"{source}: {key} takes {_type_name(key, wanted)}, got {shown(value)}")


def _items(value: Any, single: bool) -> Sequence[Any]:
    """The items of a list, or of text such as [1, 2], or ``single`` alone; no Python is evaluated for it."""
    if isinstance(value, list | tuple):
        return value
    if not isinstance(value, str):
        raise TypeError(value)
    text = value.strip()
    if text[:1] + text[-1:] in ("[]", "()"):
        text = text[1:-1].strip()
    elif "," not in text and not single:
        raise ValueError(value)
    return text.removesuffix(",").split(",") if text else []


def _item(value: Any, wanted: type) -> Any:
    if wanted is not str:
        return _number(value, wanted)
    if not isinstance(value, str):
        raise TypeError(value)
    text = value.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _number(value: Any, wanted: type) -> Any:
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER:
        return int(value, 0) if wanted is int else float(value)
    if type(value) is wanted:
        return value
    if wanted is float and type(value) is int:
        return float(value)
    raise TypeError(value)


_LONGEST_NUMBER = 400  # characters; the largest float has 309 digits


def _type_name(key: str, wanted: type) -> str:
    if wanted is list:
        items = _ITEM_TYPE[key]
        return f"a list of {items.__name__} values such as [1, 2, 3]" if items is not str else "names such as [a, b]"
    return {bool: "True or False", int: "a whole number", float: "a number", str: "text (a number in quotes)"}[wanted]
