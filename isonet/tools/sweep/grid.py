"""The grid of a sweep: the keys that have several values, and one run for each combination of them.

Commas separate the values of a key. The items of a list, such as SOLVER.LR_MILESTONES, are separated by commas
already, so semicolons separate several lists: "[30,60];[40,80]".
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
from isonet.config.load import check_overrides
from isonet.errors import ConfigError, printable
from isonet.files.run_folder import RunFolder, run_folder
from isonet.plots import short

MOST_RUNS = 1000  # more are taken for a typo

# Where runs and data are stored is the same for all runs, and the path may contain a comma
_ONE_VALUE = ("OUTPUT_DIR", "DATASET.ROOT", "DATASET.NAME")


@dataclass(frozen=True)
class Run:
    """One combination. values: of the keys that vary. opts: every override of the run as ``KEY VALUE`` text."""

    name: str
    values: dict[str, Any]
    opts: list[str]
    cfg: CfgNode
    folder: RunFolder

    @property
    def title(self) -> str:
        """The values in short: ORTHO_COEFF 1e-4, BASE_LR 0.02."""
        return ", ".join(f"{leaf(key)} {shown(value)}" for key, value in self.values.items())


def make_grid(cfg_path: str, output: str, opts: Sequence[str]) -> list[Run]:
    """Every run of a sweep.

    output: the name of the sweep, with which the names of its runs begin. opts: keys and their values, alternating.
    At least one key must have several values.

    Raises ``ConfigError`` if any run has an invalid config, so that no run starts before all of them are checked.
    """
    choices = _choices(opts)
    varying = [key for key, texts in choices.items() if len(texts) > 1]
    if not varying:
        load_cfg(cfg_path, opts)  # an unknown key has an error of its own
        raise ConfigError("no key has several values: separate them by commas, as in ISON.ORTHO_COEFF 1e-5,1e-4")
    if (size := math.prod(map(len, choices.values()))) > MOST_RUNS:
        raise ConfigError(f"a sweep has at most {MOST_RUNS:,} runs, and these values make {size:,}")
    runs = []
    for texts in itertools.product(*choices.values()):
        pairs = [item for pair in zip(choices, texts, strict=True) for item in pair]
        cfg = load_cfg(cfg_path, pairs)
        values = {key: flat(cfg)[key] for key in varying}
        name = "-".join([output, *(f"{leaf(key)}={shown(value)}" for key, value in values.items())])
        runs.append(Run(name, values, pairs, cfg, run_folder(cfg, name)))
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ConfigError(f"two runs are called {printable(max(names, key=names.count))}: give each value once")
    return runs


def _choices(opts: Sequence[str]) -> dict[str, list[str]]:
    """The values of each key, as text."""
    if len(opts) % 2:
        check_overrides(opts[-1:])  # raises: a key without a value
    defaults = flat(default_cfg())
    choices: dict[str, list[str]] = {}
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        if key in choices:
            raise ConfigError(f"{printable(key)[:60]} is given twice: separate its values by commas")
        separator = ";" if isinstance(defaults.get(key), list) else ","
        choices[key] = [text] if key in _ONE_VALUE else [part.strip() for part in text.split(separator)]
        if len(choices[key]) > 1 and not all(choices[key]):
            raise ConfigError(f"{printable(key)[:60]} {printable(text)[:60]}: a value beside {separator!r} is missing")
    return choices


def leaf(key: str) -> str:
    """The last part of a key, such as ORTHO_COEFF, or all of the key if two keys have the same last part."""
    leaves = [other.rpartition(".")[2] for other in flat(default_cfg())]
    name = key.rpartition(".")[2]
    return name if leaves.count(name) == 1 else key


def shown(value: Any) -> str:
    """A value as part of a file name, the same text for equal values: 1e-4, 0.02, 30_60."""
    if isinstance(value, list):
        return "_".join(map(shown, value)) or "none"
    return short(value) if isinstance(value, float) else re.sub(r"[^A-Za-z0-9_.+-]", "_", str(value))
