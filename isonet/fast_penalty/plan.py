"""The penalty of a whole network, planned once: which convolutions are computed together, and by which rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from isonet.convs import Conv, Skip, shape_of
from isonet.fast_penalty.gram import Grams, gram_penalty
from isonet.ortho import PUBLISHED, STRIDED, penalised_convs
from isonet.shares import WHOLE, Share, balance

# Elements of the largest intermediate result: 16 MiB of float32, about a processor's cache
_TOGETHER = 1 << 22


class OrthoPenalty:
    """The penalty of a module's convolutions, with the plan of its computation made once.

    Calling it gives the sum over all convolutions, without its coefficient: a scalar, in the weights' type but at least
    float32, whatever autocast and TF32 settings say; 0 for a module without a penalised convolution. It reads the
    weights that the module holds at that time; after a convolution was added, exchanged or moved to another device,
    make a new one. First derivatives are fast; second derivatives, ``torch.func`` and forward mode work and cost more.

    It takes 1-d to 3-d convolutions with any stride, dilation and groups, and transposed ones, through their adjoint.
    As in the paper, it leaves out a 7x7 stem and convolutions that read 3 channels.

    share: this rank's share; each rank takes some of the convolutions, in about the same time, and the sum over the
    ranks is the penalty.
    strided: "published", or "operator", which differs for strides with more outputs than inputs (``isonet.ortho``).
    skip: leaves out modules, each with all modules below it: their names, or a predicate of name and module.
    everywhere: takes the 7x7 stem and convolutions that read 3 channels, too.
    Raises ``ValueError`` for another ``strided`` and for a name in ``skip`` that no module has.
    """

    def __init__(
        self,
        module: nn.Module,
        share: Share = WHOLE,
        *,
        strided: str = PUBLISHED,
        skip: Skip = (),
        everywhere: bool = False,
    ) -> None:
        if strided not in STRIDED:
            raise ValueError(f"strided must be one of {', '.join(STRIDED)}, got {strided!r}")
        own = dict(deal_out(penalised_convs(module, skip, everywhere), share.parts, strided)[share.index])
        self.names = list(own)
        self.groups = list(_groups(own, strided))
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
        for grams, convs in self.groups:
            yield convs, gram_penalty(grams, [conv.weight for conv in convs.values()])


def ortho_penalty(module: nn.Module, *, strided: str = PUBLISHED, skip: Skip = (), everywhere: bool = False) -> Tensor:
    """The penalty of all convolutions of ``module``: one call of ``OrthoPenalty``, which explains the arguments."""
    return OrthoPenalty(module, strided=strided, skip=skip, everywhere=everywhere)()


def ortho_penalty_per_conv(
    module: nn.Module, *, strided: str = PUBLISHED, skip: Skip = (), everywhere: bool = False
) -> dict[str, Tensor]:
    """The terms of ``ortho_penalty``: a scalar for each penalised convolution, in the network's order."""
    return OrthoPenalty(module, strided=strided, skip=skip, everywhere=everywhere).per_conv()


def deal_out(convs: Iterable[tuple[str, Conv]], parts: int, strided: str = PUBLISHED) -> list[list[tuple[str, Conv]]]:
    """Named convolutions in ``parts`` parts that cost about the same; the same on every rank."""
    convs = list(convs)
    if parts == 1:
        return [convs]
    costs = [Grams(shape_of(conv), strided).cost() for _, conv in convs]
    return [[convs[i] for i in jobs] for jobs in balance(costs, parts)]


def _groups(convs: dict[str, Conv], strided: str) -> Iterator[tuple[Grams, dict[str, Conv]]]:
    """Convolutions to be computed together: those of one shape, as far as that pays."""
    alike: dict[tuple, dict[str, Conv]] = defaultdict(dict)
    for name, conv in convs.items():
        alike[Grams(shape_of(conv), strided), conv.weight.dtype, conv.weight.device][name] = conv
    for (grams, _, _), same in alike.items():
        together = _how_many_together(grams)
        names = list(same)
        for start in range(0, len(names), together):
            yield grams, {name: same[name] for name in names[start : start + together]}


def _how_many_together(grams: Grams) -> int:
    """As many as keep the largest intermediate result, the values at all points, near the processor; at least one."""
    values_of_one = grams.points().rows * grams.conv.groups * grams.rows * grams.columns
    return max(1, _TOGETHER // values_of_one)
