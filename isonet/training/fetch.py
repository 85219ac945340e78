"""A data set that is downloaded, once for all processes of a machine."""

from __future__ import annotations

from yacs.config import CfgNode

from isonet.data.build import build_source
from isonet.training.world import World


def fetch(cfg: CfgNode, world: World) -> None:
    """Where DATASET.DOWNLOAD asks for it, let one process of each machine fetch the set while the others wait."""
    if cfg.DATASET.DOWNLOAD and world.launched:
        if world.local_rank == 0:
            build_source(cfg, "val")  # the archive has both parts
        world.gather(None)
