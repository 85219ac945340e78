"""ISONet: deep isometric networks, which train without normalisation and without shortcuts.

Qi, You, Wang, Ma, Malik: Deep Isometric Learning for Visual Recognition, ICML 2020, arXiv 2006.16992.

``import isonet`` imports neither torch nor any part of the package: each name below is imported at its first use.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isonet.builders import cifar_isonet as cifar_isonet
    from isonet.builders import isonet18 as isonet18
    from isonet.builders import isonet34 as isonet34
    from isonet.builders import isonet50 as isonet50
    from isonet.builders import isonet101 as isonet101
    from isonet.builders import r_isonet18 as r_isonet18
    from isonet.builders import r_isonet34 as r_isonet34
    from isonet.builders import r_isonet50 as r_isonet50
    from isonet.builders import r_isonet101 as r_isonet101
    from isonet.config import load_cfg as load_cfg
    from isonet.fast_penalty import OrthoPenalty as OrthoPenalty
    from isonet.fast_penalty import ortho_penalty as ortho_penalty
    from isonet.fast_penalty import ortho_penalty_per_conv as ortho_penalty_per_conv
    from isonet.files.checkpoint import load_weights as load_weights
    from isonet.init import delta_init_ as delta_init_
    from isonet.models import SReLU as SReLU
    from isonet.models import build_model as build_model
    from isonet.surgery.isometrize import IsometrizedReport as IsometrizedReport
    from isonet.surgery.isometrize import isometrize as isometrize

__version__ = "0.1.0"

_NAMES = {  # module: its names
    "builders": "cifar_isonet isonet18 isonet34 isonet50 isonet101 r_isonet18 r_isonet34 r_isonet50 r_isonet101",
    "config": "load_cfg",
    "fast_penalty": "OrthoPenalty ortho_penalty ortho_penalty_per_conv",
    "files.checkpoint": "load_weights",
    "init": "delta_init_",
    "models": "SReLU build_model",
    "surgery.isometrize": "IsometrizedReport isometrize",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a name of ``__all__``, or a submodule, when it is first used (PEP 562)."""
    if name in _MODULES:
        value = getattr(importlib.import_module(f"isonet.{_MODULES[name]}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"isonet.{name}"):
        value = importlib.import_module(f"isonet.{name}")
    else:
        raise AttributeError(f"module 'isonet' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
