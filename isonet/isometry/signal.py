"""The length of the signal on its way through a network, and of the gradient on its way back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isonet.hooks import hooked
from isonet.models import SReLU

_ACTIVATIONS: tuple[type[nn.Module], ...] = (SReLU, nn.ReLU)


@dataclass(frozen=True)
class LayerNorms:
    """Means over the images for one activation: the norm of its output, and of the gradient of the loss there."""

    name: str
    forward: float
    backward: float


def signal_norms(model: nn.Module, images: Tensor, labels: Tensor) -> list[LayerNorms]:
    """The norms after each SReLU and ReLU of ``model``, in the order of computation.

    images: (N, 3, H, W). labels: (N,). The gradient is that of each image's own cross entropy. The mode of ``model``
    and the gradients of its parameters do not change.
    """
    names = {module: name for name, module in model.named_modules() if isinstance(module, _ACTIVATIONS)}
    outputs: list[tuple[str, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append((names[module], output))

    with hooked(module.register_forward_hook(note) for module in names), torch.enable_grad():
        loss = F.cross_entropy(model(images), labels, reduction="sum")  # of a mean, a gradient would depend on N
    gradients = torch.autograd.grad(loss, [output for _, output in outputs])
    return [
        LayerNorms(name, _mean_norm(output.detach()), _mean_norm(gradient))
        for (name, output), gradient in zip(outputs, gradients, strict=True)
    ]


def _mean_norm(batch: Tensor) -> float:
    return batch.flatten(1).double().norm(dim=1).mean().item()  # in float32, squares below 1e-45 are 0
