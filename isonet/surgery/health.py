"""Whether a network can learn, measured before training: two forward passes and one backward pass, no labels.

Take images ``X``, outputs ``f(X)``, and a random direction ``T`` in the space of the outputs, with norm 1 and with mean
0 over the images. The sensitivity is ``s = ||g||`` with ``g = d <T, f(X)> / d theta``. Then ``s**2 = T^t K T``, where
``K`` is the neural tangent kernel: a step of gradient descent of rate r moves the outputs of different images apart by
``r s**2``. An output that is the same for all images does not count, because a bias alone can learn that. The norm of
one layer's gradient is no criterion: it is small wherever a residual multiplier starts at 0, also in networks that
learn well.

A network is dead if ``s`` is below ``TOO_WEAK`` or above ``TOO_STRONG``, or if a step of rate 0.01 along ``g`` changes
the outputs by more than ``TOO_FAR``. docs/isometrize.md has the survey that these limits come from.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isonet.surgery.watching import ModelError, run, tensors

TOO_WEAK = 0.2
TOO_STRONG = 1e19  # the largest norm whose square float32 holds is 1.8e19
TOO_FAR = 1e6
_RATE = 0.01
_IMAGES = 8
_GRID = 8  # random values along each side of a random image
_BATCH_STATISTICS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class DeadNetworkWarning(UserWarning):
    """A network that gradient descent cannot train."""


@dataclass(frozen=True)
class Health:
    """Whether a network can learn.

    sensitivity: the norm of the gradient that tells images apart, see ``isonet.health``.
    change: the norm of what one step changes in the outputs.
    contrast: for each convolution and linear layer that runs the standard deviation of its output over the images.
    """

    sensitivity: float
    change: float
    contrast: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def alive(self) -> bool:
        return TOO_WEAK <= self.sensitivity <= TOO_STRONG and self.change <= TOO_FAR  # both False for NaN

    @property
    def reason(self) -> str:
        """Why the network is dead; empty if it is alive."""
        if self.alive:
            return ""
        if self.sensitivity < TOO_WEAK:
            layers = list(self.contrast.items())
            ends = " and ".join(
                f"{value:.1e} after {name or 'the layer'}" for name, value in layers[:: len(layers) - 1 or 1]
            )
            return (
                f"its outputs hardly depend on the image: the sensitivity is {self.sensitivity:.1e}, below {TOO_WEAK} "
                f"(standard deviation over images: {ends})"
            )
        if not self.sensitivity <= TOO_STRONG:
            return f"its gradients explode: the sensitivity is {self.sensitivity:.1e}, above {TOO_STRONG:.0e}"
        return f"its outputs explode: a step of rate {_RATE} changes them by {self.change:.1e}, more than {TOO_FAR:.0e}"

    def __str__(self) -> str:
        return f"can learn: sensitivity {self.sensitivity:.1e}" if self.alive else f"cannot learn: {self.reason}"


def measure_health(model: nn.Module, example: Tensor) -> Health:
    """The health of ``model`` on the first eight images of ``example``. Neither changes.

    If it has fewer, random images are added (``eight_images``). A copy runs in evaluation mode, so without dropout, but
    its batch and instance norms use the statistics of the images, as in training. If the weight of the last layer is
    0, it gets random values, because otherwise no other layer has a gradient. No random number comes from torch's
    global generator. Raises ``ModelError`` if the network does not run like this, or if no parameter gets a gradient.
    """
    probe = copy.deepcopy(model).eval()
    for module in probe.modules():
        if isinstance(module, _BATCH_STATISTICS):
            module.train()
    images = eight_images(example)
    with torch.enable_grad(), _contrasts(probe) as contrast:
        outputs = list(tensors(run(probe, images)))
        if contrast and _fill_zeros(probe.get_submodule(list(contrast)[-1])):
            outputs = list(tensors(run(probe, images)))
    outputs, directions = _directions(outputs, len(images))
    parameters = [parameter for parameter in probe.parameters() if parameter.requires_grad]
    try:
        found = torch.autograd.grad(outputs, parameters, directions, allow_unused=True) if outputs else []
    except RuntimeError as error:
        raise ModelError(f"the backward pass fails ({str(error).splitlines()[0]:.200})") from error
    gradients = [(p, gradient) for p, gradient in zip(parameters, found, strict=False) if gradient is not None]
    if not gradients:
        raise ModelError("no parameter gets a gradient")
    with torch.no_grad():
        for parameter, gradient in gradients:
            parameter.add_(gradient, alpha=_RATE)
        after = [x for x in tensors(run(probe, images)) if x.is_floating_point()]
    return Health(
        _norm(gradient for _, gradient in gradients),
        _norm(new - old.detach() for new, old in zip(after, outputs, strict=False) if new.shape == old.shape),
        dict(contrast),
    )


def eight_images(example: Tensor) -> Tensor:
    """The first eight images of ``example``, and random ones of its mean and deviation if it has fewer.

    Equal images count as one, and a constant image has deviation 1. The random images are smooth, like photographs:
    average pooling leaves nothing of white noise, so that a network that learns photographs would look dead.
    """
    if not example.is_floating_point():
        return example[:_IMAGES]
    example = example[:1] if (example == example[:1]).all() else example[:_IMAGES]
    shape = [_IMAGES - len(example), *example.shape[1:2], *(min(_GRID, size) for size in example.shape[2:])]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if shape[0] == 0:
        return example
    if mode := {3: "linear", 4: "bilinear", 5: "trilinear"}.get(example.ndim):
        noise = F.interpolate(noise, example.shape[2:], mode=mode)
    (noise_std, noise_mean), (std, mean) = (torch.std_mean(x.float().cpu(), unbiased=False) for x in (noise, example))
    return torch.cat([example, ((noise - noise_mean) / noise_std * (std or 1) + mean).to(example)])


def _fill_zeros(layer: Any) -> bool:
    """Give ``layer`` random weights if they are 0; returns whether they were."""
    if layer.weight.any() or not layer.weight.is_floating_point():
        return False
    values = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        layer.weight.copy_(values / math.sqrt(layer.weight[0].numel()))
    return True


def _directions(outputs: list[Tensor], images: int) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs that have a gradient, and a direction for each: of mean 0 over the images, together of norm 1."""
    outputs = [output for output in outputs if output.requires_grad and output.numel()]
    generator, found = torch.Generator().manual_seed(1), []
    for output in outputs:
        direction = torch.randn(output.shape, generator=generator)
        found.append(direction - direction.mean(0) if output.ndim and len(output) == images else direction)
    norm = _norm(found)
    return outputs, [(direction / norm).to(output) for direction, output in zip(found, outputs, strict=True)]


def _norm(values: Any) -> float:
    return math.hypot(*(x.double().norm().item() for x in values))


@contextmanager
def _contrasts(model: nn.Module) -> Iterator[dict[str, float]]:
    """Yields a dictionary that a run of ``model`` fills with each layer's standard deviation over the images."""
    found: dict[str, float] = {}

    def note(name: str, output: Any) -> None:
        found.pop(name, None)  # keeps the order of the last run
        if isinstance(output, Tensor):
            x = output.detach().float()
            found[name] = (x - x.mean(0)).square().mean().sqrt().item()

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
