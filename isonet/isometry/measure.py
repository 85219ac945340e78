"""All numbers of the isometry report of one network, in types that JSON can store."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from isonet.convs import Conv, shape_of
from isonet.errors import NonFiniteError
from isonet.fast_penalty import ortho_penalty_per_conv
from isonet.hooks import hooked
from isonet.isometry.jacobian import extreme_singular_values
from isonet.isometry.spectrum import Spectrum, conv_spectrum, feature_sizes
from isonet.models import ISONet, ResMultiplier, SReLU
from isonet.models.isonet import ResBlock
from isonet.ortho import PUBLISHED

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NEAR = 0.1  # singular values between 0.9 and 1.1 are near 1


@dataclass(frozen=True)
class LayerNorms:
    """The norms of one activation's output and of the gradient of the loss there, as means over the images.

    branch: whether the activation is inside a residual branch, parallel to a shortcut.
    """

    name: str
    forward: float
    backward: float
    branch: bool = False


def signal_norms(model: nn.Module, images: Tensor, labels: Tensor) -> list[LayerNorms]:
    """Return the norms after each SReLU and ReLU of ``model``, in the order of computation.

    images: (N, 3, H, W). labels: (N,). The gradient of an image is the gradient of its own cross entropy. The mode of
    ``model`` and the gradients of its parameters do not change.
    """
    names = {module: name for name, module in model.named_modules() if isinstance(module, SReLU | nn.ReLU)}
    blocks = [name for name, module in model.named_modules() if isinstance(module, ResBlock) and module.has_shortcut]
    branches = tuple(f"{name}.f." for name in blocks)
    outputs: list[tuple[str, Tensor]] = []

    def note(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append((names[module], output))

    with hooked(module.register_forward_hook(note) for module in names), torch.enable_grad():
        loss = F.cross_entropy(model(images), labels, reduction="sum")  # with a mean, the gradients depend on N
    gradients = torch.autograd.grad(loss, [output for _, output in outputs])
    return [
        LayerNorms(name, _mean_norm(output.detach()), _mean_norm(gradient), name.startswith(branches))
        for (name, output), gradient in zip(outputs, gradients, strict=True)
    ]


def _mean_norm(batch: Tensor) -> float:
    return batch.flatten(1).double().norm(dim=1).mean().item()  # in float32, squares below 1e-45 are 0


def measure(model: ISONet, images: Tensor, labels: Tensor, steps: int = 60, strided: str = PUBLISHED) -> dict[str, Any]:
    """Put ``model`` in evaluation mode and return a report on it.

    images: (N, 3, H, W). labels: (N,). steps: the maximum number of steps for the Jacobian of each stage at the first
    image. strided: the definition of the penalty in the network's training (``isonet.ortho``). Raises
    ``NonFiniteError`` if weights or a Jacobian are not finite. A terminal shows the progress.
    """
    model.eval()
    shifts = {name: layer.srelu_bias for name, layer in model.named_modules() if isinstance(layer, SReLU)}
    multipliers = {name: layer.scale for name, layer in model.named_modules() if isinstance(layer, ResMultiplier)}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "images": list(images.shape),
        "convs": list(_convs(model, images[:1], strided)),
        "signal": [asdict(norms) for norms in signal_norms(model, images, labels)],
        "shifts": {name: shift.flatten().tolist() for name, shift in shifts.items()},
        "multipliers": {name.removesuffix(".f.shared_scalar"): scale.item() for name, scale in multipliers.items()},
        "jacobian": list(_jacobians(model, images[:1], steps)),
    }


def _convs(model: nn.Module, image: Tensor, strided: str) -> Iterator[dict[str, Any]]:
    """Yield the singular values of each convolution on its feature map, and its part of the penalty (None: excluded).

    "kept" has the figures of only the largest singular values, as many as can be 1 (see ``kept_values``).
    """
    with torch.no_grad():
        penalties = {name: term.item() for name, term in ortho_penalty_per_conv(model, strided=strided).items()}
    for name, (height, width) in tqdm(feature_sizes(model, image).items(), "convolutions", disable=None):
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
        if not conv.weight.isfinite().all():
            raise NonFiniteError(f"{name}: the weights are not finite, so there are no singular values")
        spectrum, penalty = conv_spectrum(conv, height, width), penalties.get(name)
        kept = kept_values(conv, int(spectrum.counts.sum()), penalty is not None and strided == PUBLISHED)
        yield {
            "name": name,
            "shape": list(conv.weight.shape),
            "stride": list(conv.stride),
            "feature_map": [height, width],
            **_figures(spectrum),
            "penalty": penalty,
            "kept": _figures(spectrum.largest_values(kept)),
        }


def kept_values(conv: Conv, count: int, published: bool) -> int:
    """Return how many of the ``count`` singular values of ``conv`` on a feature map can be 1.

    published: whether only weights with a published penalty of 0 count.

    A kernel smaller than its stride does not reach every pixel. If the published penalty is 0 and ``conv`` has a stride
    and more outputs than inputs, the squares of the singular values sum up to the number of input channels at each
    output position. There are more singular values than that.
    """
    shape = shape_of(conv)
    rows, inputs = shape.out_channels // shape.groups, shape.in_channels // shape.groups
    reached = 1 if published else prod(map(min, shape.kernel, shape.step))
    return count * min(rows, inputs * reached) // min(rows, inputs * prod(shape.stride))


def _figures(spectrum: Spectrum) -> dict[str, Any]:
    values, counts = spectrum.values, spectrum.counts
    near = counts[(values - 1).abs() <= _NEAR].sum() / counts.sum()
    return {
        "singular_values": int(counts.sum()),
        "smallest": spectrum.smallest,
        "largest": spectrum.largest,
        "quantiles": spectrum.quantiles(_QUANTILES),
        "near_1": near.item(),
    }


def _jacobians(model: ISONet, image: Tensor, steps: int) -> Iterator[dict[str, Any]]:
    """Yield the extreme singular values of the Jacobian of each stage at its input, and of the whole network."""
    x = image
    for name, part in tqdm([*model.named_children(), ("whole", model)], "Jacobians", disable=None):
        at, called = (image, "the whole network") if part is model else (x, name)
        extremes = extreme_singular_values(part, at, steps, name=called)
        bounds = {"largest_is_bound": extremes.largest_is_bound, "smallest_is_bound": extremes.smallest_is_bound}
        yield {"part": name, "inputs": at.numel(), **asdict(extremes), **bounds}
        with torch.no_grad():
            x = part(at)
