"""The exact singular values of a convolution as a linear operator on its feature map.

With circular padding, a convolution of stride 1 does not mix the frequencies of the image: the 2-d Fourier transform of
the kernel is a matrix K(f) of output by input channels at each frequency f, and the singular values of the operator are
the singular values of all these matrices (Sedghi, Gupta, Long 2019). A stride s folds s x s frequencies onto one: the
matrix there consists of their K(f) side by side, divided by s. Zero padding, which networks use, differs only at the
image border.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isonet.convs import named_convs, shape_of
from isonet.hooks import hooked

Conv2d = nn.Conv2d | nn.ConvTranspose2d

_CHUNK = 1 << 22  # matrix entries that are decomposed at a time


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one operator. Each of ``values`` (n,) occurs ``counts`` (n,) times."""

    values: Tensor
    counts: Tensor

    @property
    def largest(self) -> float:
        return self.values.max().item()

    @property
    def smallest(self) -> float:
        """The smallest of min(rows, columns) values: directions that the shape alone maps to 0 do not count."""
        return self.values.min().item()

    def all(self) -> Tensor:
        """Every singular value, in decreasing order."""
        return self.values.repeat_interleave(self.counts).sort(descending=True).values

    def largest_values(self, count: int) -> "Spectrum":
        """The ``count`` largest singular values."""
        values = self.all()[:count]
        return Spectrum(values, torch.ones_like(values, dtype=torch.int64))

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The quantiles of the singular values at ``shares`` between 0 and 1."""
        values = self.all().flip(0)
        return [values[round(share * (len(values) - 1))].item() for share in shares]


@torch.no_grad()
def conv_spectrum(
    conv: Conv2d, height: int, width: int, dtype: torch.dtype = torch.float64, grid: int | None = None
) -> Spectrum:
    """Return the singular values of ``conv`` on feature maps of ``height`` x ``width`` pixels with circular padding.

    A transposed convolution has the singular values of its adjoint, so give the size of its output, which is the input
    of the adjoint. Sizes that the stride does not divide are rounded up. The computation runs on the device of the
    weights, and the result is on the CPU.

    grid: the maximum number of the output's frequencies along each axis. The others are ignored.
    """
    strides, dilation = shape_of(conv).stride, shape_of(conv).dilation
    weight = conv.weight.to(dtype).unflatten(0, (conv.groups, -1))  # (groups, out / groups, in / groups, kh, kw)
    size = [-(-n // s) * s for n, s in zip((height, width), strides, strict=True)]
    down, across = (n // s for n, s in zip(size, strides, strict=True))  # frequencies of the output
    out, in_ = weight.shape[1:3]
    if max(weight.shape[3:]) == 1:  # the same at every frequency
        values = torch.linalg.svdvals(weight[..., 0, 0])
        lost = min(out, in_ * strides[0] * strides[1]) - values.shape[1]  # with a stride, these values are 0
        values = torch.cat([values, values.new_zeros(len(values), lost)], dim=1).flatten().cpu()
        return Spectrum(values, torch.full_like(values, down * across, dtype=torch.int64))

    rows, columns = _spread(down, grid), _spread(across, grid)
    half = columns[: len(columns) // 2 + 1]  # the others are complex conjugates
    frequencies = torch.cartesian_prod(rows, half).to(weight.device)
    chunk = max(1, _CHUNK // (weight.shape[0] * out * in_ * strides[0] * strides[1]))
    values = torch.cat(
        [_singular_values(_matrices(weight, part, size, strides, dilation)) for part in frequencies.split(chunk)]
    )  # (frequencies, groups, n)
    once = (frequencies[:, 1] == 0) | (2 * frequencies[:, 1] == across)
    counts = torch.where(once, 1, 2)[:, None, None].expand_as(values)
    return Spectrum(values.flatten().cpu(), counts.flatten().cpu())


def _spread(count: int, grid: int | None) -> Tensor:
    """At most ``grid`` of ``count`` frequencies, evenly spaced up to rounding."""
    kept = min(grid or count, count)
    return torch.arange(kept) * count // kept


def _singular_values(matrices: Tensor) -> Tensor:
    """The singular values of a batch of matrices. A QR decomposition first makes long matrices small, for speed."""
    tall = matrices if matrices.shape[-2] >= matrices.shape[-1] else matrices.mH
    if tall.shape[-2] >= 2 * tall.shape[-1]:
        tall = torch.linalg.qr(tall, mode="r").R
    return torch.linalg.svdvals(tall)


def _matrices(
    weight: Tensor, frequencies: Tensor, size: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return matrices of output by folded input channels at ``frequencies`` (n, 2): (n, groups, out, in * s * s)."""
    folds = torch.cartesian_prod(*(torch.arange(s) for s in strides)).to(weight.device)
    outputs = torch.tensor([n // s for n, s in zip(size, strides, strict=True)], device=weight.device)
    inputs = frequencies[:, None] + folds * outputs  # (n, s * s, 2): the input frequencies that are folded onto each
    taps = torch.cartesian_prod(*(torch.arange(k) * d for k, d in zip(weight.shape[3:], dilation, strict=True)))
    sides = torch.tensor(size, dtype=weight.dtype, device=weight.device)
    turns = (inputs / sides) @ taps.to(sides).T  # (n, s * s, taps)
    waves = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    spectrum = torch.einsum("goit,nft->ngoif", weight.flatten(3).to(waves.dtype), waves)
    return spectrum.flatten(3) / (strides[0] * strides[1]) ** 0.5


def network_extremes(model: nn.Module, sizes: dict[str, tuple[int, int]], grid: int = 8) -> tuple[float, float]:
    """The smallest and the largest singular value of all convolutions of ``model``, estimated on a coarse grid.

    sizes: the result of ``feature_sizes``. grid: the maximum number of frequencies of an output along each axis. The
    computation is in float32. The true range is at least as wide. For smooth kernels it is hardly wider.
    """
    spectra = []
    for name, (height, width) in sizes.items():
        conv = model.get_submodule(name)
        assert isinstance(conv, Conv2d)
        spectra.append(conv_spectrum(conv, height, width, torch.float32, grid))
    return min(spectrum.smallest for spectrum in spectra), max(spectrum.largest for spectrum in spectra)


def feature_sizes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, int]]:
    """Return the height and width of the input of each 2-d convolution of ``model`` for ``images`` (N, C, H, W).

    For a transposed convolution, return the size of the output, as ``conv_spectrum`` needs it.
    """
    names: dict[nn.Module, str] = {conv: name for name, conv in named_convs(model) if isinstance(conv, Conv2d)}
    sizes: dict[str, tuple[int, int]] = {}

    def note(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        height, width = (output if isinstance(conv, nn.ConvTranspose2d) else inputs[0]).shape[-2:]
        sizes[names[conv]] = height, width

    with torch.no_grad(), hooked(conv.register_forward_hook(note) for conv in names):
        model(images)
    return sizes
