r"""The definition of the orthogonality penalty (Qi et al. 2020, section 3.2, "orthogonal regularisation").

A kernel W has C output and D input channels, C <= D (otherwise the two are exchanged). Its Gram matrix at spatial
offset d is

    G[d] = sum over taps t of  W[t + d] W[t]^T            (C x C)

and the penalty sums over every offset d that is a multiple of the stride:

    1/2 * sum over d of  || G[d] - [d = 0] I ||_F^2.

Without a stride, the penalty is 0 exactly if the convolution is an isometry: its rows are orthonormal, or its columns
if there are fewer columns than rows. ``kernel_penalty`` implements this definition. ``isonet.fast_penalty`` computes
the same numbers for whole networks, many times faster.

With a stride there are two penalties (``strided``). They differ only if there are more outputs than inputs.

"published": the exchanged kernel keeps the stride. The penalty is then not a property of the operator: an orthogonal
8 -> 16 convolution of stride 2 has a penalty of about 5, and the delta initialisation, which loses channels, has 0.

"operator": the penalty is 0 exactly for an operator A with orthonormal rows or columns. Per output position it is

    1/2 * ( || A A^T - I ||_F^2 - max(0, C - s^2 D) )     (C outputs, D inputs, stride s on each of two axes),

which is half of Lorth in Achour et al. (2022, "Existence, stability and scalability of orthogonal convolutional neural
networks"). A kernel smaller than its stride, such as a strided 1x1, ignores some pixels. If it has more outputs
than inputs, this penalty is above 0 for all weights.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from isonet.convs import Conv, ConvShape, Skip, is_7x7_stem, named_convs, shape_of
from isonet.precision import full_precision

PUBLISHED, OPERATOR = STRIDED = ("published", "operator")


def kernel_penalty(weight: Tensor, shape: ConvShape, strided: str = PUBLISHED) -> Tensor:
    """Return the penalty of one kernel, (out, in / groups, *kernel), as a scalar of at least float32.

    The Fourier transform of W is a matrix F at each frequency, and that of G is F F^H. By Parseval the sum over offsets
    of ||G[d] - [d = 0] I||^2 is the mean over frequencies of ||F F^H - I||^2. The penalty has
    derivatives of every order.
    """
    with full_precision(weight.device):
        w = weight.to(torch.promote_types(weight.dtype, torch.float32)).unflatten(0, (shape.groups, -1))
        if strided == PUBLISHED and shape.in_channels < shape.out_channels:
            w = w.transpose(1, 2)  # (groups, C, D, *kernel)
        # The offsets of k taps need 2k - 1 taps. With a multiple of the step, the frequencies fold evenly
        sizes = [math.ceil((2 * k - 1) / step) * step for k, step in zip(shape.kernel, shape.step, strict=True)]
        f = torch.fft.fftn(w, sizes, dim=tuple(range(3, w.ndim)))
        # Only offsets that are multiples of the step count: the mean of F F^H over the frequencies that fold onto one
        # another. That is F F^H of their matrices side by side
        for axis, step in enumerate(shape.step, start=3):
            f = torch.cat(f.chunk(step, axis), dim=2) / math.sqrt(step)
        f = f.movedim((1, 2), (-2, -1))  # (groups, *frequencies, C, D * steps)
        gram = f.mH @ f if strided == OPERATOR and f.shape[-1] < f.shape[-2] else f @ f.mH
        error = gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        penalty = torch.view_as_real(error).square().sum() / (2 * math.prod(f.shape[1:-2]))
    return penalty + unreachable(shape) if strided == OPERATOR else penalty


def unreachable(shape: ConvShape) -> float:
    """Return the operator's penalty minus the penalty of its smaller Gram matrix.

    It is 0 unless stride and dilation share a factor. If they do, the convolution ignores some of the pixels, and
    neither its rows nor its columns are orthonormal.
    """
    missing = [shape.out_channels - math.prod(each) * shape.in_channels for each in (shape.step, shape.stride)]
    return (max(0, missing[0]) - max(0, missing[1])) / 2


def penalised_convs(module: nn.Module, skip: Skip = (), everywhere: bool = False) -> Iterator[tuple[str, Conv]]:
    """Yield the name and module of each penalised convolution: all except a 7x7 stem and those with 3 inputs.

    These rules are the paper's. For a transposed convolution, they apply to its adjoint.

    skip: other modules to leave out (``isonet.convs.Skip``).
    everywhere: whether to leave out only the modules in ``skip``.
    """
    for name, conv in named_convs(module, skip):
        if everywhere or (shape_of(conv).in_channels != 3 and not is_7x7_stem(conv)):
            yield name, conv
