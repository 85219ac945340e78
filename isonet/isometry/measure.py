"""All numbers of the isometry report of one network, in types that JSON can store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from isonet.errors import NonFiniteError
from isonet.fast_penalty import ortho_penalty_per_conv
from isonet.isometry.jacobian import extreme_singular_values
from isonet.isometry.signal import signal_norms
from isonet.isometry.spectrum import conv_spectrum, feature_sizes
from isonet.models import ISONet, ResMultiplier, SReLU
from isonet.ortho import PUBLISHED

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NEAR = 0.1  # singular values between 0.9 and 1.1 are near 1
_BINS = 80  # of the histogram, from 0 to 2, and one more for larger values

Progress = Callable[[str], None]


def measure(
    model: ISONet,
    images: Tensor,
    labels: Tensor,
    steps: int = 60,
    progress: Progress = lambda _: None,
    strided: str = PUBLISHED,
) -> dict[str, Any]:
    """The report of ``model``, which is put in evaluation mode, on images (N, 3, H, W) with labels (N,).

    steps: at most, for the Jacobian of each stage at the first image. progress: called with the name of each part
    before it is measured. strided: the penalty of the network's training (``isonet.ortho``). Raises ``NonFiniteError``
    for weights or a Jacobian that are not finite.
    """
    model.eval()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "images": list(images.shape),
        "convs": list(_convs(model, images[:1], progress, strided)),
        "signal": [asdict(norms) for norms in signal_norms(model, images, labels)],
        "shifts": {
            name: layer.srelu_bias.detach().flatten().tolist()
            for name, layer in model.named_modules()
            if isinstance(layer, SReLU)
        },
        "multipliers": {
            name.removesuffix(".f.shared_scalar"): layer.scale.item()
            for name, layer in model.named_modules()
            if isinstance(layer, ResMultiplier)
        },
        "jacobian": list(_jacobians(model, images[:1], steps, progress)),
    }


def _convs(model: nn.Module, image: Tensor, progress: Progress, strided: str) -> Iterator[dict[str, Any]]:
    """Singular values of each convolution on its feature map, and its part of the penalty (None: not included)."""
    with torch.no_grad():
        penalties = {name: term.item() for name, term in ortho_penalty_per_conv(model, strided=strided).items()}
    convs = dict(model.named_modules())
    for name, (height, width) in feature_sizes(model, image).items():
        progress(name)
        conv = convs[name]
        assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
        if not conv.weight.isfinite().all():
            raise NonFiniteError(f"{name}: its weights are not finite, so it has no singular values")
        spectrum = conv_spectrum(conv, height, width)
        values, counts = spectrum.values, spectrum.counts
        near = counts[(values - 1).abs() <= _NEAR].sum() / counts.sum()
        places = (values / 2 * _BINS).long().clamp(max=_BINS)
        histogram = torch.zeros(_BINS + 1, dtype=torch.int64).index_add_(0, places, counts)
        yield {
            "name": name,
            "shape": list(conv.weight.shape),
            "stride": list(conv.stride),
            "feature_map": [height, width],
            "singular_values": int(counts.sum()),
            "smallest": spectrum.smallest,
            "largest": spectrum.largest,
            "quantiles": spectrum.quantiles(_QUANTILES),
            "near_1": near.item(),
            "histogram": histogram.tolist(),
            "penalty": penalties.get(name),
        }


def _jacobians(model: ISONet, image: Tensor, steps: int, progress: Progress) -> Iterator[dict[str, Any]]:
    """The extremes of each stage at the signal that reaches it, and of the whole network."""
    x = image
    for name, part in model.named_children():
        progress(f"Jacobian of {name}")
        yield {"part": name, "inputs": x.numel(), **asdict(extreme_singular_values(part, x, steps, name=name))}
        with torch.no_grad():
            x = part(x)
    progress("Jacobian of the whole network")
    whole = extreme_singular_values(model, image, steps, name="the whole network")
    yield {"part": "whole", "inputs": image.numel(), **asdict(whole)}
