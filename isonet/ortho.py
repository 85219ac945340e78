r"""The orthogonality penalty (Qi et al. 2020, section 3.2, "orthogonal regularisation"), as it is defined.

For a kernel W of C output by D input channels, C <= D (else the two are exchanged), let

    G[d] = sum over taps t of  W[t + d] W[t]^T            (C x C, the Gram matrix at spatial offset d)

for every offset d that is a multiple of the stride. The penalty is

    1/2 * sum over d of  || G[d] - [d = 0] I ||_F^2.

Without a stride it is 0 exactly if the convolution's rows, or its columns if there are fewer of them, are orthonormal.
The same holds with a stride if there are no more outputs than inputs. With a stride and more outputs than inputs, the
exchanged kernel keeps the stride, and the published penalty is no property of the operator: an orthogonal 8 -> 16
convolution of stride 2 has a penalty of about 5, and the delta initialisation, which loses channels there, one of 0.
``strided="operator"`` is 0 exactly for an operator A with orthonormal rows, or columns: per output position

    1/2 * ( || A A^T - I ||_F^2 - max(0, C - s^2 D) )     (C outputs, D inputs, stride s on each of two axes),

half of what Achour et al. (2022, "Existence, stability and scalability of orthogonal convolutional neural networks")
call Lorth. Without a stride both are the same. A kernel smaller than its stride, such as a strided 1x1, never reads
some pixels: if it has more outputs than inputs, no weights bring the operator's penalty to 0.

``isonet.fast_penalty`` computes the same numbers for whole networks, many times faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from isonet.convs import Conv, ConvShape, Skip, is_7x7_stem, named_convs, shape_of
from isonet.precision import full_precision

PUBLISHED, OPERATOR = STRIDED = ("published", "operator")


def kernel_penalty(weight: Tensor, shape: ConvShape, strided: str = PUBLISHED) -> Tensor:
    """The penalty of one kernel, (out, in / groups, *kernel): a scalar, in the weight's type but at least float32.

    The definition, computed at frequencies: the sum over offsets is a mean over the frequencies of a map that is large
    enough for all offsets (Parseval). Differentiable any number of times.
    """
    with full_precision(weight.device):
        kernels = weight.to(torch.promote_types(weight.dtype, torch.float32)).unflatten(0, (shape.groups, -1))
        if strided == PUBLISHED and shape.in_channels < shape.out_channels:
            kernels = kernels.transpose(1, 2)
        sizes = [-(-(2 * k - 1) // s) * s for k, s in zip(shape.kernel, shape.step, strict=True)]
        f = _folded(torch.fft.fftn(kernels, sizes, tuple(range(3, kernels.ndim))), shape.step)  # (..., C, D)
        gram = f.mH @ f if strided == OPERATOR and f.shape[-1] < f.shape[-2] else f @ f.mH
        error = torch.view_as_real(gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))
        penalty = error.square().sum() / 2 / math.prod(f.shape[1:-2])
    return penalty + unreachable(shape) if strided == OPERATOR else penalty


def _folded(f: Tensor, step: Sequence[int]) -> Tensor:
    """(groups, C, D, *frequencies of the input) -> (groups, *frequencies of the output, C, D * step).

    A step s folds s input frequencies onto each output frequency: there the C x D matrices of all of them stand side
    by side, divided by sqrt(s).
    """
    axes = len(step)
    f = f.reshape(*f.shape[:3], *(part for n, s in zip(f.shape[3:], step, strict=True) for part in (s, n // s)))
    f = f.permute(0, *range(4, f.ndim, 2), 1, 2, *range(3, f.ndim, 2)).flatten(axes + 2)
    return f / math.prod(step) ** 0.5


def unreachable(shape: ConvShape) -> float:
    """What the operator's penalty adds to that of its smaller Gram matrix: 0 unless stride and dilation share a factor.

    If they do, the convolution never reads some of the pixels, and neither its rows nor its columns are orthonormal.
    """
    missing = [shape.out_channels - math.prod(each) * shape.in_channels for each in (shape.step, shape.stride)]
    return (max(0, missing[0]) - max(0, missing[1])) / 2


def penalised_convs(module: nn.Module, skip: Skip = (), everywhere: bool = False) -> Iterator[tuple[str, Conv]]:
    """The convolutions that the penalty counts: all but a 7x7 stem and those that read 3 channels, as in the paper.

    For a transposed convolution, both rules apply to its adjoint. skip: also leave these out (``isonet.convs.Skip``).
    everywhere: leave out only those in ``skip``.
    """
    for name, conv in named_convs(module, skip):
        if everywhere or (shape_of(conv).in_channels != 3 and not is_7x7_stem(conv)):
            yield name, conv
