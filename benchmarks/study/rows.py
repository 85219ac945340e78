"""The rows of the study: each config with its learning rates and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yacs.config import CfgNode

from benchmarks.study import stored
from benchmarks.study.stored import REPO, Stored
from isonet.config import load_cfg
from isonet.files.run_folder import RunFolder, run_folder

CONFIGS = REPO / "configs" / "study"


@dataclass(frozen=True)
class Run:
    """One training run: a config, its base learning rate and its seed."""

    config: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.config}-lr{self.rate:g}-seed{self.seed}"

    @property
    def arguments(self) -> list[str]:
        """The arguments of ``train.py``."""
        return ["--cfg", f"configs/study/{self.config}.yaml", "--output", self.name, *self.opts]

    @property
    def opts(self) -> list[str]:
        return ["SOLVER.BASE_LR", f"{self.rate:g}", "RUNTIME.SEED", str(self.seed)]

    @property
    def command(self) -> str:
        return " ".join(["python train.py", *self.arguments])

    def cfg(self) -> CfgNode:
        return load_cfg(CONFIGS / f"{self.config}.yaml", self.opts)

    def folder(self) -> RunFolder:
        return run_folder(self.cfg(), self.name)


@dataclass(frozen=True)
class Row:
    """A config of configs/study/, whose BASE_LR is the best of ``rates``.

    rates: the base learning rates that run with seed 0, in addition to the config's rate.
    seeds: the seeds of the runs at the config's rate.
    """

    config: str
    title: str
    rates: Sequence[float] = ()
    seeds: Sequence[int] = (0,)

    @property
    def path(self) -> Path:
        return CONFIGS / f"{self.config}.yaml"

    @property
    def cfg(self) -> CfgNode:
        return load_cfg(self.path)

    @property
    def rate(self) -> float:
        return self.cfg.SOLVER.BASE_LR

    def searched(self) -> list[Run]:
        """Return one run with seed 0 at each rate, the lowest rate first."""
        return [Run(self.config, rate, 0) for rate in sorted({self.rate, *self.rates})]

    def repeated(self) -> list[Run]:
        """Return one run with each seed at the rate of the config."""
        return [Run(self.config, self.rate, seed) for seed in self.seeds]

    def finished(self) -> list[Stored]:
        """Return the runs of ``repeated`` that are stored in results/."""
        return [run for run in (stored.read(run.name) for run in self.repeated()) if run]

    def runs(self) -> list[Run]:
        return list(dict.fromkeys([*self.repeated(), *self.searched()]))
