"""ISONet: deep isometric networks, which train without normalisation and without shortcuts.

Qi, You, Wang, Ma, Malik: Deep Isometric Learning for Visual Recognition, ICML 2020, arXiv 2006.16992.

``import isonet`` imports neither torch nor any part of the package: each name below is imported at its first use.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isonet.builders import (
        cifar_isonet,
        isonet18,
        isonet34,
        isonet50,
        isonet101,
        r_isonet18,
        r_isonet34,
        r_isonet50,
        r_isonet101,
    )
    from isonet.config import load_cfg
    from isonet.fast_penalty import OrthoPenalty, ortho_penalty, ortho_penalty_per_conv
    from isonet.files.checkpoint import load_weights
    from isonet.init import delta_init_
    from isonet.models import SReLU, build_model
    from isonet.surgery.isometrize import IsometrizedReport, isometrize

__version__ = "0.1.0"
__all__ = [
    "IsometrizedReport",
    "OrthoPenalty",
    "SReLU",
    "build_model",
    "cifar_isonet",
    "delta_init_",
    "isometrize",
    "isonet18",
    "isonet34",
    "isonet50",
    "isonet101",
    "load_cfg",
    "load_weights",
    "ortho_penalty",
    "ortho_penalty_per_conv",
    "r_isonet18",
    "r_isonet34",
    "r_isonet50",
    "r_isonet101",
]

_MODULES = {
    "IsometrizedReport": "surgery.isometrize",
    "OrthoPenalty": "fast_penalty",
    "SReLU": "models",
    "build_model": "models",
    "delta_init_": "init",
    "isometrize": "surgery.isometrize",
    "load_cfg": "config",
    "load_weights": "files.checkpoint",
    "ortho_penalty": "fast_penalty",
    "ortho_penalty_per_conv": "fast_penalty",
}  # the others are networks of ``isonet.builders``


def __getattr__(name: str) -> Any:
    """Import a name of ``__all__``, or a submodule, when it is first used (PEP 562)."""
    if name in __all__:
        value = getattr(importlib.import_module(f"isonet.{_MODULES.get(name, 'builders')}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"isonet.{name}"):
        value = importlib.import_module(f"isonet.{name}")
    else:
        raise AttributeError(f"module 'isonet' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
