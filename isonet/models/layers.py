"""The layers of isometric networks: SReLU, the multiplier of residual branches, and the factory of all layers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isonet.private_torch import transforms_active


class SReLU(nn.Module):
    """Shifted ReLU with one learned shift per channel (Qi et al. 2020, section 3.1).

        y = max(x, b),      dy/dx = [x > b],      dy/db = [x <= b]

    If x equals b, the gradient belongs to the shift and not to the input. Such ties are common after the delta
    initialisation. ``torch.maximum`` divides the gradient between the two, and so would train another network. The
    shift starts at -1, so that a normalised signal passes almost unchanged.

    Input and output have any rank and ``channels`` entries along ``dim``: (N, C, H, W), (N, C), (N, C, L), and with
    ``dim=-1`` also (N, L, C). A tensor of rank 3 is interpreted as (N, C, L); ``dim=-3`` accepts both (N, C, H, W) and
    an image without a batch dimension, (C, H, W).

    inplace: whether to overwrite the input, as ``nn.ReLU(inplace=True)`` does. The values are the same and a training
    step needs less memory, but hooks on the preceding module see the overwritten tensor, and full backward hooks and
    vectorised backward passes (``is_grads_batched``) raise an error.

    Raises ``ValueError`` for an input with another number of channels.
    """

    dim = 1  # for modules that were pickled before this attribute existed

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
        # Plain operators with the same gradient. ``where`` works in the shift's type, to sum the shift's gradient in it
        return torch.where((x > shift.to(x.dtype)) | x.isnan(), x, shift).to(x.dtype)
    inplace = inplace and not torch.compiler.is_compiling()  # the compiler plans its own memory
    if trains:
        return _SReLU.apply(x, shift, inplace)
    return torch.maximum(x, shift.to(x.dtype), out=x if inplace else None)


class _SReLU(torch.autograd.Function):
    """``max(x, shift)`` in one pass. It saves its output, which the next layer saves, too: it needs no extra memory.

    The shift broadcasts against x: it has the rank of x, and at most one axis that is longer than 1.
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
        above = output - _shift_like(output, shift)  # 0 where x <= shift
        grad_x = torch.ops.aten.threshold_backward(grad, above, 0)
        # Overwriting ``above`` is faster than new memory, but would break a second derivative or a vectorised pass
        grad_shift = torch.sub(grad, grad_x, out=above if ctx.inplace and not torch.is_grad_enabled() else None)
        others = [axis for axis in range(grad.ndim) if shift.shape[axis] == 1]
        if others:
            return grad_x, grad_shift.sum(others, keepdim=True, dtype=shift.dtype), None
        return grad_x, grad_shift.to(shift.dtype), None


def _along(x: Tensor, shift: Tensor, dim: int) -> Tensor:
    """Return ``shift``, (1, C, 1, 1), as a view that broadcasts along ``dim`` of ``x``."""
    channels = shift.shape[1]
    if not -x.ndim <= dim < x.ndim or x.shape[dim] != channels:
        raise ValueError(
            f"SReLU of {channels} channels along dim {dim} got an input of shape {tuple(x.shape)}: "
            "pass the number of channels, and their axis as dim=..."
        )
    if x.ndim == 4 and dim in (1, -3):
        return shift
    return shift.reshape([channels if axis == dim % x.ndim else 1 for axis in range(x.ndim)])


def _shift_like(x: Tensor, shift: Tensor) -> Tensor:
    """Return the shift in the type of ``x``, which autocast reduces to 16 bits."""
    if x.dtype != shift.dtype and torch.compiler.is_compiling():
        return _rounded(shift, x.dtype)
    return shift.to(x.dtype)


@torch.library.custom_op("isonet::rounded", mutates_args=())
def _rounded(shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``shift`` in 16 bits, even if a compiler would keep all 32.

    If the output is rounded to 16 bits and the shift is not, a clipped output is greater than the shift half the time,
    and its gradient wrongly reaches the input.
    """
    return shift.to(dtype)


@_rounded.register_fake
def _(shift: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(shift, dtype=dtype)


class ResMultiplier(nn.Module):
    """A learned scalar on a residual branch. R-ISONet starts it at 0, so that each block starts as its shortcut.

    Under autocast the branch stays in 16 bits. The scalar's gradient, a sum over the whole branch, is float32.
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
    """Computes ``x * scale`` in the type of x, and the gradient of the scalar, a sum, in the type of the scalar."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return x * scale  # a tensor without dimensions does not change the type of x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return grad * scale, (grad * x).sum(dtype=scale.dtype)


# torch.fx records each of these functions as one call. Their result depends on the type of the input and on whether
# gradients are enabled, which a symbolic trace does not know
torch.fx.wrap("_srelu")
torch.fx.wrap("_scaled")


def shift_names(module: nn.Module) -> set[str]:
    """Return the names of all SReLU shifts among ``module.named_parameters()``, which have no weight decay."""
    shifts = {id(m.srelu_bias) for m in module.modules() if isinstance(m, SReLU)}
    return {name for name, parameter in module.named_parameters() if id(parameter) in shifts}


def work_in_place_(module: nn.Module) -> nn.Module:
    """Make all activations of one of this project's networks work in place. Nothing else uses their inputs."""
    for layer in module.modules():
        if isinstance(layer, SReLU | nn.ReLU):
            layer.inplace = True
    return module


@dataclass(frozen=True)
class LayerFactory:
    """Creates the layers of one network.

    batch_norm: whether batch norm follows every convolution.
    srelu: whether activations are SReLU rather than ReLU.
    shortcuts: whether blocks add their input to their output.
    multiplier: the initial value of the scalar on each residual branch, or None for no scalar.
    """

    batch_norm: bool = False
    srelu: bool = True
    shortcuts: bool = False
    multiplier: float | None = None

    def conv(self, w_in: int, w_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        # SReLU's shift and batch norm's beta make a bias redundant
        bias = not (self.srelu or self.batch_norm)
        return nn.Conv2d(w_in, w_out, kernel, stride, padding=kernel // 2, bias=bias)

    def norm(self, width: int) -> nn.Module:
        return nn.BatchNorm2d(width) if self.batch_norm else nn.Identity()

    def act(self, width: int) -> nn.Module:
        return SReLU(width) if self.srelu else nn.ReLU()

    def scale(self) -> nn.Module:
        return nn.Identity() if self.multiplier is None else ResMultiplier(self.multiplier)
