"""Data sets and loaders."""

from isonet.data.build import Loader, build_loader

__all__ = ["Loader", "build_loader"]
