"""Print the numbers of docs/fidelity.md: the effect of TF32 on the penalty, and the difference of its formulations.

python -m benchmarks.fidelity    takes a few seconds on a CPU
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import isonet
from benchmarks.baseline import penalty_of_weight
from isonet import ortho_penalty
from isonet.ortho import penalised_convs

TF32_BITS = 10  # bits of the mantissa without the leading 1; float32 has 23


def as_tf32(x: Tensor) -> Tensor:
    """Return ``x`` rounded to the mantissa of TF32."""
    mantissa, exponent = torch.frexp(x)
    scale = 2.0 ** (TF32_BITS + 1)
    return torch.ldexp((mantissa * scale).round() / scale, exponent)


def value_and_gradient(net: nn.Module) -> tuple[float, Tensor]:
    """Return the penalty, and its gradient with respect to all weights as one vector."""
    weights = [conv.weight for _, conv in penalised_convs(net)]
    penalty = ortho_penalty(net)
    return penalty.item(), torch.cat([g.flatten() for g in torch.autograd.grad(penalty, weights)])


def main() -> None:
    torch.manual_seed(0)
    for distance in (1e-4, 1e-3, 1e-2):
        net = isonet.cifar_isonet(20)
        with torch.no_grad():
            for _, conv in penalised_convs(net):
                conv.weight.add_(torch.randn_like(conv.weight), alpha=distance)
        rounded = copy.deepcopy(net)
        with torch.no_grad():
            for _, conv in penalised_convs(rounded):
                conv.weight.copy_(as_tf32(conv.weight))
        (value, gradient), (rounded_value, rounded_gradient) = map(value_and_gradient, (net, rounded))
        of_value = abs(rounded_value - value) / value
        of_gradient = ((rounded_gradient - gradient).norm() / gradient.norm()).item()
        published = sum(penalty_of_weight(conv.weight, conv.stride[0]).item() for _, conv in penalised_convs(net))
        print(
            f"ISONet-20, noise of {distance:g} on delta: rounding the weights to TF32 changes the penalty by "
            f"{of_value:.1e}, and its gradient by {of_gradient:.1e}; the penalty as a padded convolution differs by "
            f"{abs(published - value) / value:.1e}"
        )


if __name__ == "__main__":
    main()
