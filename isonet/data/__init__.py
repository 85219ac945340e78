"""Data sets and loaders."""

from isonet.data.build import build_loader
from isonet.data.loader import Loader

__all__ = ["Loader", "build_loader"]
