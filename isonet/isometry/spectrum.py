"""The exact singular values of a convolution as a linear operator on its feature map.

With edges that meet (circular padding) a convolution of stride 1 keeps every frequency of the picture to itself: the
2-d Fourier transform of the kernel is, at each frequency f, a matrix K(f) of output by input channels, and the singular
values of the operator are those of all these matrices (Sedghi, Gupta, Long 2019). A stride s folds s x s
frequencies onto one: the matrix there is the row of their K(f), divided by s. Zero padding, which networks use, differs
from this at the edge of the picture alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isonet.convs import named_convs

_CHUNK = 1 << 22  # numbers whose decompositions are made at a time


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one operator, of which some are alike: ``values`` (n,), each ``counts`` (n,) times."""

    values: Tensor
    counts: Tensor

    @property
    def largest(self) -> float:
        return self.values.max().item()

    @property
    def smallest(self) -> float:
        """Of those that the shape allows: as many as the smaller of the two spaces has dimensions."""
        return self.values.min().item()

    def all(self) -> Tensor:
        """Every singular value, in falling order."""
        return self.values.repeat_interleave(self.counts).sort(descending=True).values

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The value below which each share of the singular values lies."""
        order = self.values.argsort()
        reached = self.counts[order].cumsum(0)
        targets = torch.tensor(shares, dtype=torch.float64) * (reached[-1] - 1)
        places = torch.searchsorted(reached, targets.round().long(), right=True)
        return self.values[order][places].tolist()


@torch.no_grad()
def conv_spectrum(conv: nn.Conv2d, height: int, width: int, dtype: torch.dtype = torch.float64) -> Spectrum:
    """Of ``conv`` on feature maps of ``height`` x ``width`` pixels whose edges meet.

    Sizes that its stride does not divide are rounded up to those that it does.
    """
    strides = _pair(conv.stride)
    size = [-(-n // s) * s for n, s in zip((height, width), strides, strict=True)]
    weight = conv.weight.to(dtype).unflatten(0, (conv.groups, -1))  # (groups, out, in, kh, kw), of one group
    if max(conv.kernel_size) == 1 and strides == (1, 1):  # the same at every frequency
        values = torch.linalg.svdvals(weight[..., 0, 0]).flatten()
        return Spectrum(values, torch.full_like(values, size[0] * size[1], dtype=torch.int64))

    folded = _frequencies(weight, size, strides, _pair(conv.dilation))  # (groups, out, in * s * s, H / s, W / s)
    down, across = folded.shape[-2:]
    half = across // 2 + 1  # the rest is conjugate to these
    matrices = folded[..., :half].flatten(-2).movedim(-1, 0).flatten(0, 1)  # (frequencies * groups, out, in * s * s)
    chunk = max(1, _CHUNK // matrices[0].numel())
    values = torch.cat([torch.linalg.svdvals(part) for part in matrices.split(chunk)])  # (frequencies * groups, n)
    twice = torch.full((half,), 2)
    twice[0] = 1
    if across % 2 == 0:
        twice[-1] = 1
    counts = twice.repeat(down)[:, None, None].expand(-1, conv.groups, values.shape[1])
    return Spectrum(values.flatten(), counts.flatten().to(values.device))


def _frequencies(weight: Tensor, size: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """At each frequency of the output the matrix of output by folded input channels."""
    groups, out, in_, kh, kw = weight.shape
    (height, width), (down, across) = size, strides
    rows = torch.arange(kh, device=weight.device) * dilation[0] % height
    columns = torch.arange(kw, device=weight.device) * dilation[1] % width
    places = (rows[:, None] * width + columns).flatten()  # a kernel larger than the picture meets itself
    picture = weight.new_zeros(groups, out, in_, height * width).index_add_(3, places, weight.flatten(3))
    spectrum = torch.fft.fft2(picture.unflatten(3, (height, width)))
    parts = spectrum.unflatten(4, (across, width // across)).unflatten(3, (down, height // down))
    folded = parts.permute(0, 1, 2, 3, 5, 4, 6).flatten(2, 4)  # (groups, out, in * s * s, H / s, W / s)
    return folded / (down * across) ** 0.5


def feature_sizes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, int]]:
    """Height and width of the feature map that each 2-d convolution of ``model`` reads, for such images."""
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sizes[name] = (inputs[0].shape[-2], inputs[0].shape[-1])

        return hook

    convs = [(name, conv) for name, conv in named_convs(model) if isinstance(conv, nn.Conv2d)]
    hooks = [conv.register_forward_pre_hook(note(name)) for name, conv in convs]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def _pair(value: object) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple) else (value, value)
    return int(first), int(second)
