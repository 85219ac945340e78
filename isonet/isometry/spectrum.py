"""The exact singular values of a convolution as a linear operator on its feature map.

With edges that meet (circular padding) a convolution of stride 1 keeps every frequency of the picture to itself: the
2-d Fourier transform of the kernel is, at each frequency f, a matrix K(f) of output by input channels, and the singular
values of the operator are those of all these matrices (Sedghi, Gupta, Long 2019). A stride s folds s x s
frequencies onto one: the matrix there is the row of their K(f), divided by s. Zero padding, which networks use, differs
from this at the edge of the picture alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isonet.convs import named_convs

Conv2d = nn.Conv2d | nn.ConvTranspose2d

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
def conv_spectrum(conv: Conv2d, height: int, width: int, dtype: torch.dtype = torch.float64) -> Spectrum:
    """Of ``conv`` on feature maps of ``height`` x ``width`` pixels whose edges meet.

    A transposed convolution has the singular values of its adjoint: give the size of the maps that it produces, which
    the adjoint reads. Sizes that its stride does not divide are rounded up to those it does.
    Computed where the weights are, and returned on the CPU.
    """
    found = _spectrum(_by_group(conv, dtype), (height, width), _pair(conv.stride), _pair(conv.dilation))
    return Spectrum(found.values.cpu(), found.counts.cpu())


def _by_group(conv: Conv2d, dtype: torch.dtype) -> Tensor:
    """(groups, out, in, kh, kw), of one group each"""
    return conv.weight.detach().to(dtype).unflatten(0, (conv.groups, -1))


def _spectrum(
    weight: Tensor, shape: Sequence[int], strides: Sequence[int], dilation: Sequence[int], grid: int | None = None
) -> Spectrum:
    """Of kernels (groups, out, in, kh, kw) that work side by side on feature maps of ``shape``.

    grid: look at no more than ``grid`` x ``grid`` of the frequencies, each of which is counted as if it were alone.
    """
    size = [-(-n // s) * s for n, s in zip(shape, strides, strict=True)]
    down, across = (n // s for n, s in zip(size, strides, strict=True))  # frequencies of the output
    out, in_ = weight.shape[1:3]
    if max(weight.shape[3:]) == 1:  # the same at every frequency
        values = torch.linalg.svdvals(weight[..., 0, 0])
        lost = min(out, in_ * strides[0] * strides[1]) - values.shape[1]  # what only folded frequencies could fill
        values = torch.cat([values, values.new_zeros(len(values), lost)], dim=1).flatten()
        return Spectrum(values, torch.full_like(values, down * across, dtype=torch.int64))

    rows, columns = _spread(down, grid), _spread(across, grid)
    half = columns[: len(columns) // 2 + 1]  # the rest is conjugate to these
    frequencies = torch.cartesian_prod(rows, half).to(weight.device)
    chunk = max(1, _CHUNK // (weight.shape[0] * out * in_ * strides[0] * strides[1]))
    values = torch.cat(
        [_singular_values(_matrices(weight, part, size, strides, dilation)) for part in frequencies.split(chunk)]
    )  # (frequencies, groups, n)
    once = (frequencies[:, 1] == 0) | (2 * frequencies[:, 1] == across)
    counts = torch.where(once, 1, 2)[:, None, None].expand_as(values)
    return Spectrum(values.flatten(), counts.flatten())


def _spread(count: int, grid: int | None) -> Tensor:
    """Up to ``grid`` of ``count`` frequencies, as evenly as whole numbers can be."""
    kept = min(grid or count, count)
    return torch.arange(kept) * count // kept


def _singular_values(matrices: Tensor) -> Tensor:
    """Of much longer than wide matrices by way of their triangular factor, which has the same: many times faster."""
    tall = matrices if matrices.shape[-2] >= matrices.shape[-1] else matrices.mH
    if tall.shape[-2] >= 2 * tall.shape[-1]:
        tall = torch.linalg.qr(tall, mode="r").R
    return torch.linalg.svdvals(tall)


def _matrices(
    weight: Tensor, frequencies: Tensor, size: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """At each frequency of the output, (n, 2), output by folded input channels: (n, groups, out, in * s * s)."""
    folds = torch.cartesian_prod(*(torch.arange(s) for s in strides)).to(weight.device)
    outputs = torch.tensor([n // s for n, s in zip(size, strides, strict=True)], device=weight.device)
    inputs = frequencies[:, None] + folds * outputs  # (n, s * s, 2): those that are folded onto each
    taps = torch.cartesian_prod(*(torch.arange(k) * d for k, d in zip(weight.shape[3:], dilation, strict=True)))
    sides = torch.tensor(size, dtype=weight.dtype, device=weight.device)
    turns = (inputs / sides) @ taps.to(sides).T  # (n, s * s, taps)
    waves = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    spectrum = torch.einsum("goit,nft->ngoif", weight.flatten(3).to(waves.dtype), waves)
    return spectrum.flatten(3) / (strides[0] * strides[1]) ** 0.5


def network_extremes(model: nn.Module, sizes: dict[str, tuple[int, int]], grid: int = 8) -> tuple[float, float]:
    """The smallest and the largest singular value of all convolutions of ``model``, as far as a coarse look tells.

    sizes: of the feature maps that they read. Looked at are ``grid`` x ``grid`` of the frequencies that their outputs
    have, in float32: the true range is as wide or wider, for smooth kernels by little.
    """
    modules = dict(model.named_modules())
    alike: dict[tuple, list[Tensor]] = defaultdict(list)  # computed together: small ones take as long as their calls
    for name, size in sizes.items():
        conv = modules[name]
        assert isinstance(conv, Conv2d)
        strides = _pair(conv.stride)
        coarse = tuple(_coarse(n, s, grid) for n, s in zip(size, strides, strict=True))
        weight = _by_group(conv, torch.float32)
        alike[weight.shape[1:], coarse, strides, _pair(conv.dilation)].append(weight)
    spectra = [
        _spectrum(torch.cat(weights), size, strides, dilation, grid)
        for (_, size, strides, dilation), weights in alike.items()
    ]
    return min(spectrum.smallest for spectrum in spectra), max(spectrum.largest for spectrum in spectra)


def _coarse(size: int, stride: int, grid: int) -> int:
    """The smallest size with the same frequencies on the grid: maps of many sizes are then alike."""
    return grid * stride if -(-size // stride) % grid == 0 else size


def feature_sizes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, int]]:
    """Height and width of the feature map that each 2-d convolution of ``model`` reads, for such images.

    For a transposed convolution, the map that it produces, as ``conv_spectrum`` takes it.
    """
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            read = output if isinstance(module, nn.ConvTranspose2d) else inputs[0]
            sizes[name] = (read.shape[-2], read.shape[-1])

        return hook

    convs = [(name, conv) for name, conv in named_convs(model) if isinstance(conv, Conv2d)]
    hooks = [conv.register_forward_hook(note(name)) for name, conv in convs]
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
