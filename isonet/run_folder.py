"""Where a run lies: one folder ``OUTPUT_DIR/DATASET.NAME/<output>/`` with fixed names inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from yacs.config import CfgNode

from isonet.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def latest(self) -> Path:
        """Checkpoint of the last finished epoch."""
        return self.path / "latest.pt"

    @property
    def best(self) -> Path:
        """Checkpoint of the epoch with the highest validation top-1."""
        return self.path / "best.pt"

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """One JSON line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def versions(self) -> Path:
        """Versions of what the run used, as JSON."""
        return self.path / "versions.json"

    @property
    def profile(self) -> Path:
        """Where the time of some steps went, if RUNTIME.PROFILE asked."""
        return self.path / "profile.txt"

    def holds_a_run(self) -> bool:
        return any(file.exists() for file in self._files())

    def clear(self) -> None:
        """Remove the files of the run, and nothing else that lies there."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return [self.latest, self.best, self.config, self.log, self.metrics, self.versions, self.profile]


def run_folder(cfg: CfgNode, output: str) -> RunFolder:
    """The folder of the run ``output`` of this config, whether it exists or not."""
    if not output or output in (".", "..") or "/" in output or "\\" in output:
        raise ConfigError(f"--output names one folder below OUTPUT_DIR/DATASET.NAME, got {output!r}")
    return RunFolder(Path(cfg.OUTPUT_DIR) / cfg.DATASET.NAME / output)


def find_checkpoint(cfg: CfgNode, ckpt: str) -> Path:
    """The file that ``--ckpt`` means: a checkpoint, a run folder's best, or that of a run of this config."""
    path = Path(ckpt)
    if path.is_file():
        return path
    candidates = [RunFolder(path)]
    if path.name == ckpt:
        candidates.append(run_folder(cfg, ckpt))
    for folder in candidates:
        for file in (folder.best, folder.latest):
            if file.is_file():
                return file
    places = " nor ".join(str(folder.path) for folder in candidates)
    raise CheckpointError(
        f"no checkpoint {ckpt}: {places} is neither a file nor a folder that holds best.pt or latest.pt"
    )
