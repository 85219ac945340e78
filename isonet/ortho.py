r"""The orthogonality penalty (Qi et al. 2020, section 3.2, "orthogonal regularisation").

For a kernel W of C output by D input channels, C <= D (else the two are exchanged), let

    G[d] = sum over taps t of  W[t + d] W[t]^T            (C x C, the Gram matrix at spatial offset d)

for every offset d that is a multiple of the stride. The convolution has orthonormal rows exactly if
G[0] is the identity and every other G[d] is 0, and the penalty is

    1/2 * sum over d of  || G[d] - [d = 0] I ||_F^2.

This module says which convolutions it is taken of; ``isonet.gram`` computes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from isonet.convs import Conv, is_7x7_stem, named_convs
from isonet.gram import ConvShape, gram_penalty
from isonet.shares import WHOLE, Share, balance

# Elements of the largest intermediate result: 16 MiB of float32, about a processor's cache
_TOGETHER = 1 << 22


class OrthoPenalty:
    """The penalty of a module's convolutions, with the plan of its computation made once.

    Calling it gives the sum over all convolutions, without its coefficient: a scalar, in the weights'
    type but never below float32, whatever autocast and TF32 settings say; 0 for a module without a
    penalised convolution. It reads the weights that the module holds at that time; after a
    convolution was added, exchanged or moved to another device, make a new one.

    A 7x7 stem and convolutions that read 3 channels are left out, as in the paper. Takes 1-d to 3-d
    convolutions with any stride, dilation and groups; raises ``ValueError`` for transposed ones.

    share: of several processes this one's; each takes some of the convolutions, in about the same time,
    and the sum over the processes is the penalty.
    """

    def __init__(self, module: nn.Module, share: Share = WHOLE) -> None:
        own = dict(deal_out(penalised_convs(module), share.parts)[share.index])
        self.names = list(own)
        self.groups = list(_groups(own))
        self.nothing = torch.zeros((), device=next((p.device for p in module.parameters()), None))

    def __call__(self) -> Tensor:
        terms = [values for _, values in self._penalties()]
        return torch.cat(terms).sum() if terms else self.nothing.clone()

    def per_conv(self) -> dict[str, Tensor]:
        """The terms of the sum: a scalar for each penalised convolution, in the network's order."""
        terms: dict[str, Tensor] = {}
        for names, values in self._penalties():
            terms.update(zip(names, values, strict=True))
        return {name: terms[name] for name in self.names}

    def _penalties(self) -> Iterator[tuple[Iterable[str], Tensor]]:
        for shape, convs in self.groups:
            yield convs, gram_penalty(shape, [conv.weight for conv in convs.values()])


def ortho_penalty(module: nn.Module) -> Tensor:
    """The penalty of all convolutions of ``module``: one call of ``OrthoPenalty``, which tells the rest."""
    return OrthoPenalty(module)()


def ortho_penalty_per_conv(module: nn.Module) -> dict[str, Tensor]:
    """The terms of ``ortho_penalty``: a scalar for each penalised convolution, in the network's order."""
    return OrthoPenalty(module).per_conv()


def penalised_convs(module: nn.Module) -> Iterator[tuple[str, Conv]]:
    """The convolutions that the penalty counts: all but a 7x7 stem and those that read 3 channels."""
    for name, conv in named_convs(module):
        if conv.in_channels != 3 and not is_7x7_stem(conv):
            yield name, conv


def shape_of(conv: Conv) -> ConvShape:
    """What the cost of its penalty follows from."""
    kernel, stride, dilation = tuple(conv.kernel_size), tuple(conv.stride), tuple(conv.dilation)
    return ConvShape(conv.out_channels, conv.in_channels, kernel, stride, dilation, conv.groups)


def deal_out(convs: Iterable[tuple[str, Conv]], parts: int) -> list[list[tuple[str, Conv]]]:
    """Named convolutions in ``parts`` parts that cost about the same; the same on whichever process."""
    convs = list(convs)
    if parts == 1:
        return [convs]
    return [[convs[i] for i in jobs] for jobs in balance([shape_of(conv).cost() for _, conv in convs], parts)]


def _groups(convs: dict[str, Conv]) -> Iterator[tuple[ConvShape, dict[str, Conv]]]:
    """Convolutions to be computed together: those of one shape, as far as that pays."""
    alike: dict[tuple, dict[str, Conv]] = defaultdict(dict)
    for name, conv in convs.items():
        alike[shape_of(conv), conv.weight.dtype, conv.weight.device][name] = conv
    for (shape, _, _), same in alike.items():
        together = _how_many_together(shape)
        names = list(same)
        for start in range(0, len(names), together):
            yield shape, {name: same[name] for name in names[start : start + together]}


def _how_many_together(shape: ConvShape) -> int:
    """As many as keep the largest intermediate result, the values at all points, near the processor; at least one."""
    values_of_one = shape.points().rows * shape.groups * shape.narrow * shape.wide
    return max(1, _TOGETHER // values_of_one)
