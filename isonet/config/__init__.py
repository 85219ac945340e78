"""The config of a run: every key, and how a file and the command line set it."""

from isonet.config.keys import default_cfg
from isonet.config.load import (
    check_overrides,
    flat,
    global_batch,
    image_size,
    load_cfg,
    parse_cfg,
    read_written_cfg,
    uses_small_images,
)

__all__ = [
    "check_overrides",
    "default_cfg",
    "flat",
    "global_batch",
    "image_size",
    "load_cfg",
    "parse_cfg",
    "read_written_cfg",
    "uses_small_images",
]
