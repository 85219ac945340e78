"""Which modules and functions count as activations and norms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kinds = tuple[type[nn.Module], ...]

BATCH_STATISTICS: Kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
                           nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # fmt: skip
NORMS: Kinds = (*BATCH_STATISTICS, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
DROPOUTS: Kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
RELUS: Kinds = (nn.ReLU, nn.ReLU6)  # replaced by default: below the cap of 6 both are max(x, 0)
GATES: Kinds = (nn.Sigmoid, nn.Hardsigmoid)  # their output weighs a signal that bypasses them
NOT_POINTWISE: Kinds = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.LogSoftmax)

ATTENTION = (F.softmax, torch.softmax, Tensor.softmax, F.scaled_dot_product_attention)
FUNCTIONS: dict[type[nn.Module], tuple[Callable[..., Any], ...]] = {  # that compute what the module computes
    nn.ReLU: (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
    nn.ReLU6: (F.relu6,),
    nn.LeakyReLU: (F.leaky_relu,),
    nn.ELU: (F.elu,),
    nn.SiLU: (F.silu,),
    nn.GELU: (F.gelu,),
    nn.Hardswish: (F.hardswish,),
}


def is_activation(module: nn.Module) -> bool:
    """Whether ``module`` is one of torch's activations, gates and attention included."""
    return type(module).__module__ == "torch.nn.modules.activation"


def kind_of(function: object, kinds: Iterable[type[nn.Module]] = FUNCTIONS) -> type[nn.Module] | None:
    """The first of ``kinds`` that computes what ``function`` computes, None if there is none."""
    return next((kind for kind in kinds if any(function is each for each in FUNCTIONS.get(kind, ()))), None)
