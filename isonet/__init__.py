"""ISONet: deep isometric networks, which train without normalisation and without shortcuts.

Qi, You, Wang, Ma, Malik: Deep Isometric Learning for Visual Recognition, ICML 2020, arXiv 2006.16992.
"""

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
