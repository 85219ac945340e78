"""The length of the signal on its way through a network, and of the gradient on its way back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isonet.models import SReLU

_ACTIVATIONS = (SReLU, nn.ReLU)


@dataclass(frozen=True)
class LayerNorms:
    """Of one activation: the mean over images of the norm of its output, and of the loss's gradient there."""

    name: str
    forward: float
    backward: float


def signal_norms(model: nn.Module, images: Tensor, labels: Tensor) -> list[LayerNorms]:
    """After each activation of ``model``, in the order of computation, for images (N, 3, H, W) and labels (N,).

    The gradient is that of each image's own cross entropy. The mode of ``model`` is left as it is, its own gradients
    are not touched.
    """
    outputs: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: outputs.append((name, output)))
        for name, module in model.named_modules()
        if isinstance(module, _ACTIVATIONS)
    ]
    try:
        with torch.enable_grad():
            loss = F.cross_entropy(model(images), labels, reduction="sum")  # so that no image has part in another's
    finally:
        for hook in hooks:
            hook.remove()
    gradients = torch.autograd.grad(loss, [output for _, output in outputs])
    return [
        LayerNorms(name, _mean_norm(output.detach()), _mean_norm(gradient))
        for (name, output), gradient in zip(outputs, gradients, strict=True)
    ]


def _mean_norm(batch: Tensor) -> float:
    return batch.flatten(1).double().norm(dim=1).mean().item()  # in float32 squares below 1e-45 are 0
