"""The layers of isometric networks, and the one place that decides which of them a network gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isonet.private_torch import transforms_active


class SReLU(nn.Module):
    """Shifted ReLU, ``max(x, b)``, with one learned shift ``b`` per channel (Qi et al. 2020, section 3.1).

    Takes and returns a tensor of any rank with ``channels`` entries along ``dim``: (N, C, H, W), (N, C), (N, C, L), and
    with ``dim=-1`` also (N, L, C). The shift starts at -1, so that a normalised signal passes almost unchanged. Where
    ``x == b`` the gradient goes to the shift and not to the input: ties are common after the delta initialisation,
    and a gradient shared between the two would train another network.

    A rank of 3 is (N, C, L); ``dim=-3`` takes both (N, C, H, W) and an image without a batch, (C, H, W).

    inplace: overwrite the input, as ``nn.ReLU(inplace=True)`` does. The values are the same and a training step needs
    less memory, but hooks on the module before it see the overwritten tensor, and full backward hooks and vectorised
    backward passes (``is_grads_batched``) raise an error.

    Raises ``ValueError`` for an input with another number of channels.
    """

    dim = 1  # of modules that were pickled before they had this attribute

    def __init__(self, channels: int, shift: float = -1.0, inplace: bool = False, dim: int = 1) -> None:
        super().__init__()
        self.inplace = inplace
        self.dim = dim
        self.srelu_bias = nn.Parameter(torch.full((1, channels, 1, 1), shift))

    def forward(self, x: Tensor) -> Tensor:
        return _srelu(x, self.srelu_bias, self.dim, self.inplace)

    def extra_repr(self) -> str:
        return f"{self.srelu_bias.shape[1]}{f', dim={self.dim}' if self.dim != 1 else ''}"


def _srelu(x: Tensor, shift: Tensor, dim: int, inplace: bool) -> Tensor:
    shift = _along(x, shift, dim)
    trains = torch.is_grad_enabled()
    if transforms_active() or (trains and torch.compiler.is_exporting()):
        above = (x > shift.to(x.dtype)) | x.isnan()
        return torch.where(above, x, shift).to(x.dtype)  # in the shift's type, so that its gradient is summed in that
    inplace = inplace and not torch.compiler.is_compiling()  # the compiler plans its memory itself
    if trains:
        return _SReLU.apply(x, shift, inplace)
    return torch.maximum(x, shift.to(x.dtype), out=x if inplace else None)


def _along(x: Tensor, shift: Tensor, dim: int) -> Tensor:
    """``shift``, (1, C, 1, 1), as a view that broadcasts along ``dim`` of ``x``."""
    channels = shift.shape[1]
    if not -x.ndim <= dim < x.ndim or x.shape[dim] != channels:
        raise ValueError(
            f"SReLU of {channels} channels along dim {dim} got an input of shape {tuple(x.shape)}: "
            "give it the number of channels, and by dim=... the axis that they lie on"
        )
    if x.ndim == 4 and dim in (1, -3):
        return shift
    return shift.reshape([channels if axis == dim % x.ndim else 1 for axis in range(x.ndim)])


@torch.library.custom_op("isonet::rounded", mutates_args=())
def _rounded(shift: Tensor, dtype: torch.dtype) -> Tensor:
    """``shift`` in 16 bits, even if a compiler would keep all 32.

    If the output is rounded to 16 bits and the shift is not, a clipped output is greater than the shift half the time,
    and its gradient wrongly reaches the input.
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
    """``max(x, shift)`` in one pass. Saves its output, which the next layer saves anyway, so it costs no memory.

    The shift broadcasts against x: it has the rank of x, and one axis that is longer than 1.
    """

    @staticmethod
    def forward(x: Tensor, shift: Tensor, inplace: bool) -> Tensor:
        return torch.maximum(x, _shift_like(x, shift), out=x if inplace else None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        x, shift, inplace = inputs
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(output, shift)
        ctx.inplace = inplace

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        output, shift = ctx.saved_tensors
        above = output - _shift_like(output, shift)  # 0 at ties
        grad_x = torch.ops.aten.threshold_backward(grad, above, 0)
        # Overwriting a tensor is faster than new memory, but nothing may differentiate or vectorise this pass then
        grad_shift = torch.sub(grad, grad_x, out=above if ctx.inplace and not torch.is_grad_enabled() else None)
        others = [axis for axis in range(grad.ndim) if shift.shape[axis] == 1]
        if others:
            return grad_x, grad_shift.sum(others, keepdim=True, dtype=shift.dtype), None
        return grad_x, grad_shift.to(shift.dtype), None


class ResMultiplier(nn.Module):
    """A learned scalar on a residual branch (R-ISONet starts it at 0, so that each block is its shortcut).

    Under autocast the branch stays in 16 bits; the scalar's gradient, a sum over the whole branch, is float32.
    """

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, 1, 1, 1), start))

    def forward(self, x: Tensor) -> Tensor:
        return _scaled(x, self.scale)


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    scale = scale.view(())
    if x.dtype == scale.dtype:
        return x * scale
    if transforms_active():
        return (x.to(scale.dtype) * scale).to(x.dtype)
    return _Scaled.apply(x, scale)


class _Scaled(torch.autograd.Function):
    """``x * scale`` in the type of x, with a scalar of another type, whose gradient is summed in its own."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return x * scale  # a tensor without dimensions leaves x its type

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return grad * scale, (grad * x).sum(dtype=scale.dtype)


# To torch.fx each is one call: what it does depends on the type of its input and on whether gradients are wanted,
# which a symbolic trace does not know
torch.fx.wrap("_srelu")
torch.fx.wrap("_scaled")


def shift_names(module: nn.Module) -> set[str]:
    """The names of all SReLU shifts among ``module.named_parameters()``: weight decay must leave them alone."""
    shifts = {id(m.srelu_bias) for m in module.modules() if isinstance(m, SReLU)}
    return {name for name, parameter in module.named_parameters() if id(parameter) in shifts}


def work_in_place_(module: nn.Module) -> nn.Module:
    """Make all activations of one of this project's networks work in place; nothing else reads their inputs."""
    for layer in module.modules():
        if isinstance(layer, SReLU | nn.ReLU):
            layer.inplace = True
    return module


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
        return SReLU(width) if self.srelu else nn.ReLU()

    def scale(self) -> nn.Module:
        return nn.Identity() if self.multiplier is None else ResMultiplier(self.multiplier)
