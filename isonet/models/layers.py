"""The layers of isometric networks, and the one place that decides which of them a network gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class SReLU(nn.Module):
    """Shifted ReLU, ``max(x, b)``, with one learned shift ``b`` per channel (Qi et al. 2020, section 3.1).

    Takes and returns (N, C, H, W). The shift starts at -1, so that a normalised signal passes almost
    unchanged. Where ``x == b`` the gradient belongs to the shift and not to the input: ties are
    common after the delta initialisation, and sharing them would train another network.

    inplace: write the result over the input, as ``nn.ReLU(inplace=True)`` does, where nothing else needs it.
    """

    def __init__(self, channels: int, shift: float = -1.0, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace
        self.srelu_bias = nn.Parameter(torch.full((1, channels, 1, 1), shift))

    def forward(self, x: Tensor) -> Tensor:
        return _srelu(x, self.srelu_bias, self.inplace)

    def extra_repr(self) -> str:
        return f"{self.srelu_bias.shape[1]}"


def _srelu(x: Tensor, shift: Tensor, inplace: bool) -> Tensor:
    inplace = inplace and not torch.compiler.is_compiling()  # which plans its memory by itself
    if torch.is_grad_enabled():
        return _SReLU.apply(x, shift, inplace)
    return torch.maximum(x, shift.to(x.dtype), out=x if inplace else None)


@torch.library.custom_op("isonet::rounded", mutates_args=())
def _rounded(shift: Tensor, dtype: torch.dtype) -> Tensor:
    """``shift`` in 16 bits, also where a compiler would go on with all 32.

    Beside a shift that was not rounded, an output that was lies above it as often as not where the two are equal, and
    the gradient of all that was cut off would go to the input.
    """
    return shift.to(dtype)


@_rounded.register_fake
def _(shift: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(shift, dtype=dtype)


def _shift_like(x: Tensor, shift: Tensor) -> Tensor:
    """The shift in the type of ``x``: autocast feeds SReLU in reduced precision."""
    if x.dtype != shift.dtype and torch.compiler.is_compiling():
        return _rounded(shift, x.dtype)
    return shift.to(x.dtype)


class _SReLU(torch.autograd.Function):
    """One pass forward. Keeps its output, which the next layer keeps anyway, and so costs no memory of its own."""

    @staticmethod
    def forward(x: Tensor, shift: Tensor, inplace: bool) -> Tensor:
        return torch.maximum(x, _shift_like(x, shift), out=x if inplace else None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        x, shift, inplace = inputs
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(output, shift)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        output, shift = ctx.saved_tensors
        above = output - _shift_like(output, shift)  # 0 at ties, too
        grad_x = torch.ops.aten.threshold_backward(grad, above, 0)
        # A tensor is reused where nobody asks for second derivatives: new memory costs more than the arithmetic
        reuse = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        rest = torch.sub(grad, grad_x, out=above if reuse else None)
        return grad_x, rest.sum((0, 2, 3), keepdim=True, dtype=shift.dtype), None


class ResMultiplier(nn.Module):
    """A learned scalar on a residual branch (R-ISONet starts it at 0, so that each block is its shortcut).

    Under autocast the branch stays in 16 bits; the scalar's gradient, a sum over all of it, is float32.
    """

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, 1, 1, 1), start))

    def forward(self, x: Tensor) -> Tensor:
        return _scaled(x, self.scale)


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    if x.dtype == scale.dtype:
        return x * scale
    return _ScaleInTypeOfInput.apply(x, scale)


class _ScaleInTypeOfInput(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return x * scale.view(())  # a tensor without dimensions leaves x its type

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return grad * scale.view(()), (grad * x).sum(dtype=scale.dtype).view(scale.shape)


# To torch.fx each is one call, which decides when it runs: what it does depends on the type of its input and on
# whether gradients are wanted, of which a symbolic trace knows nothing
torch.fx.wrap("_srelu")
torch.fx.wrap("_scaled")


@dataclass(frozen=True)
class LayerFactory:
    """Makes the layers of one network.

    batch_norm: normalise after every convolution.
    srelu: SReLU, else ReLU.
    shortcuts: blocks add their input.
    multiplier: start of the scalar on each residual branch; None: no scalar.
    """

    batch_norm: bool = False
    srelu: bool = True
    shortcuts: bool = False
    multiplier: float | None = None

    def conv(self, w_in: int, w_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        # SReLU's shift and batch norm's beta do a bias's work
        bias = not (self.srelu or self.batch_norm)
        return nn.Conv2d(w_in, w_out, kernel, stride, padding=kernel // 2, bias=bias)

    def norm(self, width: int) -> nn.Module:
        return nn.BatchNorm2d(width) if self.batch_norm else nn.Identity()

    def act(self, width: int) -> nn.Module:
        return SReLU(width, inplace=True) if self.srelu else nn.ReLU(inplace=True)

    def scale(self) -> nn.Module:
        return nn.Identity() if self.multiplier is None else ResMultiplier(self.multiplier)
