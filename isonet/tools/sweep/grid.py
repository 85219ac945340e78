"""The grid of a sweep: which keys have several values, and the run of each combination.

Values of a key are separated by commas. A list, such as SOLVER.LR_MILESTONES takes, holds commas itself: several
lists are separated by semicolons, as in "[30,60];[40,80]".
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from isonet.config import default_cfg, flat, load_cfg
from isonet.errors import ConfigError, printable
from isonet.files.run_folder import RunFolder, run_folder
from isonet.plots import short

MOST_RUNS = 1000  # beyond them lies a slip of the finger

# Where runs and data lie is one place, the same for all runs, and may have a comma in its name
_ONE_VALUE = ("OUTPUT_DIR", "DATASET.ROOT", "DATASET.NAME")


@dataclass(frozen=True)
class Run:
    """One combination. values: of the keys that vary, in their types; opts: these as ``KEY VALUE`` text."""

    name: str
    values: dict[str, Any]
    opts: list[str]
    cfg: CfgNode
    folder: RunFolder

    @property
    def title(self) -> str:
        return ", ".join(f"{leaf(key)} {shown(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Grid:
    keys: list[str]  # that vary
    runs: list[Run]
    cfg: CfgNode  # of the first run: what the runs have in common


def make_grid(cfg_path: str, output: str, opts: Sequence[str]) -> Grid:
    """All runs of a command; ``opts`` alternates keys and values, of which one key at least has several.

    Raises ``ConfigError`` for whatever is wrong with one of them, before any has begun.
    """
    choices = _choices(opts)
    keys = [key for key, values in choices.items() if len(values) > 1]
    if not keys:
        load_cfg(cfg_path, opts)  # which has more to say of keys that are none
        raise ConfigError("no key has several values: separate them by commas, as in ISON.ORTHO_COEFF 1e-5,1e-4")
    if (size := math.prod(map(len, choices.values()))) > MOST_RUNS:
        raise ConfigError(f"{size:,} runs are more than a sweep has, which is {MOST_RUNS:,} at most")
    runs = []
    for combination in itertools.product(*choices.values()):
        every = dict(zip(choices, combination, strict=True))
        cfg = load_cfg(cfg_path, [item for pair in every.items() for item in pair])
        values = {key: flat(cfg)[key] for key in keys}
        name = "-".join([output, *(f"{leaf(key)}={shown(value)}" for key, value in values.items())])
        varying = [item for key in keys for item in (key, every[key])]
        runs.append(Run(name, values, varying, cfg, run_folder(cfg, name)))
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ConfigError(f"one value is given twice: {printable(max(names, key=names.count))} would be two runs")
    return Grid(keys, runs, runs[0].cfg)


def _choices(opts: Sequence[str]) -> dict[str, list[str]]:
    """The values of each key, as text."""
    defaults = flat(default_cfg())
    if len(opts) % 2:
        raise ConfigError(
            f"overrides come as KEY VALUES pairs, but {printable(opts[-1])[:60]} has no value (or spaces within values)"
        )
    choices: dict[str, list[str]] = {}
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        if key in choices:
            raise ConfigError(f"{printable(key)[:60]} is given twice: separate its values by commas")
        separator = ";" if isinstance(defaults.get(key), list) else ","
        choices[key] = [text] if key in _ONE_VALUE else [part.strip() for part in text.split(separator)]
        if len(choices[key]) > 1 and not all(choices[key]):
            raise ConfigError(f"{printable(key)[:60]} {printable(text)[:60]}: a value is missing beside {separator!r}")
    return choices


def leaf(key: str) -> str:
    """The last part of a key, which tells it from the others: ORTHO_COEFF."""
    name = key.rpartition(".")[2]
    same = [other for other in flat(default_cfg()) if other.rpartition(".")[2] == name]
    return name if len(same) == 1 else key


def shown(value: Any) -> str:
    """A value as part of a file's name; equal values are equal texts: 1e-4, 0.02, 30_60."""
    if isinstance(value, list):
        return "_".join(map(shown, value)) or "none"
    if isinstance(value, float):
        return short(value)
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", str(value))
