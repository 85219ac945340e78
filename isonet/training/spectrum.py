"""How far the convolutions are from isometries while they train."""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from isonet.config import image_size
from isonet.isometry import feature_sizes, network_extremes


def spectrum_row(model: nn.Module, cfg: CfgNode, epoch: int) -> dict[str, float]:
    """For the metrics of ``epoch``, where RUNTIME.LOG_SPECTRUM asks for it: extreme singular values of all convs."""
    every = cfg.RUNTIME.LOG_SPECTRUM
    if not every or epoch % every:
        return {}
    device, was_training = next(model.parameters()).device, model.training
    size = image_size(cfg)
    model.eval()
    sizes = feature_sizes(model, torch.zeros(1, 3, size, size, device=device))
    model.train(was_training)
    smallest, largest = network_extremes(model, sizes)
    return {"smallest_singular_value": smallest, "largest_singular_value": largest}
