"""Whether a network can learn, measured before training: two or three forward passes, one backward pass, no labels.

Take images ``X``, outputs ``f(X)`` and a random direction ``T`` in the space of the outputs, with norm 1 and with mean
0 over the images. The sensitivity is ``s = ||g||`` with ``g = d <T, f(X)> / d theta``. Then ``s**2 = T^t K T``, where
``K`` is the neural tangent kernel: a step of gradient descent with rate r moves the outputs of different images apart
by ``r s**2``. An output that is the same for all images does not count, because a bias alone can learn it. The gradient
norm of a single layer is no criterion: it is small wherever a residual multiplier starts at 0, in networks that learn
well, too.

A network is dead if ``s`` is below ``TOO_WEAK`` or above ``TOO_STRONG``, or if a step with rate 0.01 along ``g``
changes the outputs by more than ``TOO_FAR``. docs/isometrize.md has the survey behind these limits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isonet.convs import Conv
from isonet.hooks import hooked
from isonet.surgery.kinds import BATCH_STATISTICS
from isonet.surgery.running import ModelError, eight_images, run, tensors

TOO_WEAK = 0.2
TOO_STRONG = 1e19  # the largest norm whose square fits in float32 is 1.8e19
TOO_FAR = 1e6
_RATE = 0.01


@dataclass(frozen=True)
class Health:
    """Whether a network can learn.

    sensitivity: norm of the gradient that separates images, ``s`` above.
    change: norm of the change of the outputs in one step.
    contrast: standard deviation over the images of the output of each convolution and linear layer, in the order of
    computation.
    """

    sensitivity: float
    change: float
    contrast: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def alive(self) -> bool:
        return TOO_WEAK <= self.sensitivity <= TOO_STRONG and self.change <= TOO_FAR  # both False for nan

    @property
    def reason(self) -> str:
        """Why the network is dead; empty if it is alive."""
        if self.alive:
            return ""
        if self.sensitivity < TOO_WEAK:
            return f"its outputs hardly depend on the image: sensitivity {self.sensitivity:.1e}, below {TOO_WEAK}"
        if not self.sensitivity <= TOO_STRONG:
            return f"its gradients explode: sensitivity {self.sensitivity:.1e}, above {TOO_STRONG:.0e}"
        return f"its outputs explode: a step of rate {_RATE} changes them by {self.change:.1e}, more than {TOO_FAR:.0e}"

    def __str__(self) -> str:
        return f"can learn: sensitivity {self.sensitivity:.1e}" if self.alive else f"cannot learn: {self.reason}"


def measure_health(model: nn.Module, example: Tensor) -> Health:
    """The health of ``model`` on the first eight images of ``example``, which ``eight_images`` fills up.

    Neither argument changes, and no random number comes from torch's global generator. A copy of the network runs in
    evaluation mode, so without dropout, but its batch and instance norms use the statistics of the images, as in
    training. If the weight of the last layer is 0, it gets random values, because otherwise no other layer would have a
    gradient. Raises ``ModelError`` if the network does not run like this, or if no parameter gets a gradient.
    """
    probe = copy.deepcopy(model).eval()
    for module in probe.modules():
        if isinstance(module, BATCH_STATISTICS):
            module.train()
    images = eight_images(example)
    contrast: dict[str, float] = {}
    layers: dict[nn.Module, str] = {
        module: name for name, module in probe.named_modules() if isinstance(module, Conv | nn.Linear)
    }

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        contrast.pop(layers[layer], None)  # keeps the order of the last run
        if isinstance(output, Tensor):
            x = output.detach().float()
            contrast[layers[layer]] = (x - x.mean(0)).square().mean().sqrt().item()

    with torch.enable_grad(), hooked(layer.register_forward_hook(note) for layer in layers):
        outputs = list(tensors(run(probe, images)))
        if contrast and _fill_zeros(probe.get_submodule(list(contrast)[-1])):
            outputs = list(tensors(run(probe, images)))
    outputs = [output for output in outputs if output.requires_grad and output.numel()]
    parameters = [parameter for parameter in probe.parameters() if parameter.requires_grad]
    gradients = _gradients(outputs, parameters, len(images))
    with torch.no_grad():
        for parameter, gradient in gradients:
            parameter.add_(gradient, alpha=_RATE)
        after = [x for x in tensors(run(probe, images)) if x.is_floating_point()]
    return Health(
        _norm(gradient for _, gradient in gradients),
        _norm(new - old.detach() for new, old in zip(after, outputs, strict=False) if new.shape == old.shape),
        contrast,
    )


def _fill_zeros(layer: Any) -> bool:
    """Give ``layer`` random weights if they are 0; returns whether they were."""
    if layer.weight.any() or not layer.weight.is_floating_point():
        return False
    values = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        layer.weight.copy_(values / math.sqrt(layer.weight[0].numel()))
    return True


def _gradients(outputs: list[Tensor], parameters: list[nn.Parameter], images: int) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter with its part of ``g``, if it has one."""
    generator, directions = torch.Generator().manual_seed(1), []
    for output in outputs:
        direction = torch.randn(output.shape, generator=generator)
        directions.append(direction - direction.mean(0) if output.ndim and len(output) == images else direction)
    norm = _norm(directions)
    directions = [(direction / norm).to(output) for direction, output in zip(directions, outputs, strict=True)]
    try:
        all_gradients = torch.autograd.grad(outputs, parameters, directions, allow_unused=True) if outputs else ()
    except RuntimeError as error:
        raise ModelError(f"the backward pass fails ({str(error).splitlines()[0]:.200})") from error
    gradients = [(p, gradient) for p, gradient in zip(parameters, all_gradients, strict=False) if gradient is not None]
    if not gradients:
        raise ModelError("no parameter gets a gradient")
    return gradients


def _norm(values: Iterable[Tensor]) -> float:
    return math.hypot(*(x.double().norm().item() for x in values))
