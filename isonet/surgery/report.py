"""The report of ``isometrize``: what changed in a network, what stayed, and whether the result can learn.

Whether it can learn is measured before training: two or three forward passes, one backward pass, no labels.

Let ``X`` be images, ``f(X)`` outputs and ``T`` a random direction in the output space, with norm 1 and with mean
0 over the images. The sensitivity is ``s = ||g||`` with ``g = d <T, f(X)> / d theta``. Then ``s**2 = T^t K T``, where
``K`` is the neural tangent kernel: a step of gradient descent with rate r moves the outputs of different images apart
by ``r s**2``. An output that is the same for all images does not count, because a bias alone can learn it. The gradient
norm of a single layer is no criterion: it is small wherever a residual multiplier starts at 0, also in networks that
learn well.

A network is dead if ``s`` is below ``TOO_WEAK`` or above ``TOO_STRONG``, or if a step with rate 0.01 along ``g``
changes the outputs by more than ``TOO_FAR``. docs/isometrize.md describes the survey behind these limits.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isonet.convs import Conv
from isonet.hooks import hooked
from isonet.surgery.running import ModelError, eight_images, run, tensors
from isonet.surgery.watching import BATCH_STATISTICS

TOO_WEAK = 0.2
TOO_STRONG = 1e19  # the largest norm whose square fits in float32 is 1.8e19
TOO_FAR = 1e6
_RATE = 0.01
_SHOWN = 4  # names that are listed for each kind


@dataclass(frozen=True)
class Health:
    """Whether a network can learn.

    sensitivity: the norm ``s`` of the gradient that separates images (see above).
    change: the norm of the change of the outputs in one step.
    contrast: the standard deviation over the images of the output of each convolution and linear layer, in the order of
    computation.
    """

    sensitivity: float
    change: float
    contrast: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def reason(self) -> str:
        """The reason why the network is dead, or an empty string if it is alive."""
        if self.sensitivity < TOO_WEAK:
            return f"its outputs hardly depend on the image: sensitivity {self.sensitivity:.1e}, below {TOO_WEAK}"
        if not self.sensitivity <= TOO_STRONG:  # true for nan, too
            return f"its gradients explode: sensitivity {self.sensitivity:.1e}, above {TOO_STRONG:.0e}"
        if not self.change <= TOO_FAR:
            return f"its outputs explode: a step of rate {_RATE} changes them by {self.change:.1e}, over {TOO_FAR:.0e}"
        return ""

    @property
    def alive(self) -> bool:
        return not self.reason

    def __str__(self) -> str:
        return f"can learn: sensitivity {self.sensitivity:.1e}" if self.alive else f"cannot learn: {self.reason}"


class DeadNetworkWarning(UserWarning):
    """Gradient descent cannot train the network."""


class UnchangedNetworkWarning(UserWarning):
    """No activation of the network becomes SReLU, so ``isometrize`` returns it unchanged."""


@dataclass
class IsometrizedReport:
    """What ``isometrize`` did to a network, by the names of its modules.

    activations: modules that are SReLU now, with their former class. norms_removed: modules that are the identity now,
    with their former class. biases_added: convolutions with a new bias. multipliers: ``ResMultiplier`` modules, one
    for each residual branch. rewired: modules that became a ``torch.fx.GraphModule``. initialised, penalised:
    convolutions that the initialisation and the penalty include. not_initialised, not_penalised: the other
    convolutions, with the reason. left: activations, norms and sums that stay, with the reason. unchanged: the reason
    why the network is unchanged; empty if it changed. health: whether the network can learn; None if that was not
    measured. not_measured: the reason. advised: arguments of ``isometrize`` that give a network that can learn.
    """

    activations: dict[str, str] = field(default_factory=dict)
    norms_removed: dict[str, str] = field(default_factory=dict)
    biases_added: list[str] = field(default_factory=list)
    multipliers: list[str] = field(default_factory=list)
    rewired: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)
    not_initialised: dict[str, str] = field(default_factory=dict)
    penalised: list[str] = field(default_factory=list)
    not_penalised: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    unchanged: str = ""
    health: Health | None = None
    not_measured: str = ""
    advised: dict[str, Any] = field(default_factory=dict)

    def leave(self, name: str, module: nn.Module, why: str) -> None:
        """Record that a module stays, with the reason, unless a reason is recorded already."""
        self.left.setdefault(name, f"{type(module).__name__}: {why}")

    def __str__(self) -> str:
        lines = [
            _line("activations are SReLU now", self.activations),
            _line("norms removed", self.norms_removed),
            _line("convolutions received a bias", self.biases_added),
            _line("residual branches received a multiplier", self.multipliers),
            _line("modules rewired by torch.fx, their parameters' names kept", self.rewired),
            _line("convolutions start as the identity", self.initialised),
            _line("convolutions keep their weights", self.not_initialised),
            _line("convolutions count in the penalty", self.penalised),
            _line("convolutions do not count in the penalty", self.not_penalised),
            _line("left unchanged", self.left),
            *([] if self.activations else ["no activation is SReLU: also=(...) names further kinds to replace"]),
            str(self.health or f"health not measured: {self.not_measured}"),
        ]
        return "\n".join(lines)


def _line(what: str, names: Iterable[str]) -> str:
    reasons = names if isinstance(names, dict) else dict.fromkeys(names, "")
    listed = [f"{name or 'the network itself'}{f' ({why})' if why else ''}" for name, why in reasons.items()]
    shown = ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
    return f"{len(listed):4} {what}{': ' if listed else ''}{shown}"


def measure_health(model: nn.Module, example: Tensor) -> Health:
    """Return the health of ``model`` on the first eight images of ``example``, which ``eight_images`` fills up.

    The call changes neither argument and takes no random number from torch's global generator. A copy of the network
    runs in evaluation mode, so without dropout, but its batch and instance norms use the statistics of the images, as
    in training. If the weight of the last layer is 0, random values replace it, because otherwise no other layer has a
    gradient. Raises ``ModelError`` if the network does not run like this, or if no parameter receives a gradient.
    """
    probe = copy.deepcopy(model).eval()
    for module in probe.modules():
        if isinstance(module, BATCH_STATISTICS):
            module.train()
    images = eight_images(example)
    contrast: dict[str, float] = {}
    layers = {module: name for name, module in probe.named_modules() if isinstance(module, Conv | nn.Linear)}

    def note(layer: Any, inputs: Any, output: Any) -> None:
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
    """Give ``layer`` random weights if its weights are 0, and return whether they were 0."""
    if layer.weight.any() or not layer.weight.is_floating_point():
        return False
    values = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        layer.weight.copy_(values / math.sqrt(layer.weight[0].numel()))
    return True


def _gradients(outputs: list[Tensor], parameters: list[nn.Parameter], images: int) -> list[tuple[nn.Parameter, Tensor]]:
    """Return each parameter that has a part of ``g``, with that part."""
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
        raise ModelError("no parameter receives a gradient")
    return gradients


def _norm(values: Iterable[Tensor]) -> float:
    return math.hypot(*(x.double().norm().item() for x in values))
