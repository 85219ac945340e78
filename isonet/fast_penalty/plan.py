"""The penalty of a whole network, planned once: which convolutions are computed together, and on which rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from isonet.convs import Conv, Skip, shape_of
from isonet.fast_penalty.gram import Grams, gram_penalty
from isonet.ortho import PUBLISHED, STRIDED, penalised_convs
from isonet.shares import WHOLE, Share, balance

# Numbers in the largest intermediate result: 16 MiB of float32, about the size of a processor's cache
_TOGETHER = 1 << 22


class OrthoPenalty:
    """The penalty of a module's convolutions, with the plan of its computation made once.

    A call returns the sum over all convolutions, without the coefficient: a scalar in the weights' type, but at least
    float32, whatever the autocast and TF32 settings. It is 0 for a module without a penalised convolution. A call reads
    the module's current weights. After a convolution was added, replaced or moved to another device, make a new plan.

    The penalty is defined for 1-d to 3-d convolutions with any stride, dilation and groups, and for transposed ones
    through their adjoint. As in the paper, a 7x7 stem and convolutions that read 3 channels are left out.

    First derivatives of kernels of up to three taps on each of two axes are fast. The definition computes the rest:
    second derivatives, ``torch.func``, forward mode, and larger kernels. A 5x5 takes about twice as long as in the
    paper's formulation, and 2 to 25 times as long as points for it would (``python -m benchmarks.penalty``).

    share: this rank's share. Each rank takes some of the convolutions, in about the same time, and the sum over the
    ranks is the penalty.
    strided: "published" or "operator"; they differ for strides with more outputs than inputs (``isonet.ortho``).
    skip: modules to leave out, each with all modules below it: their names, or a predicate of name and module.
    everywhere: count the 7x7 stem and convolutions that read 3 channels, too.

    Raises ``ValueError`` for any other ``strided``, and for a name in ``skip`` that no module has.
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
        """Return the terms of the sum: a scalar for each penalised convolution, in the network's order."""
        terms = {name: value for names, values in self._penalties() for name, value in zip(names, values, strict=True)}
        return {name: terms[name] for name in self.names}

    def _penalties(self) -> Iterator[tuple[Iterable[str], Tensor]]:
        for grams, convs in self.groups:
            yield convs, gram_penalty(grams, [conv.weight for conv in convs.values()])


def ortho_penalty(module: nn.Module, *, strided: str = PUBLISHED, skip: Skip = (), everywhere: bool = False) -> Tensor:
    """Return the penalty of all convolutions of ``module``. Arguments and result as in ``OrthoPenalty``."""
    return OrthoPenalty(module, strided=strided, skip=skip, everywhere=everywhere)()


def ortho_penalty_per_conv(
    module: nn.Module, *, strided: str = PUBLISHED, skip: Skip = (), everywhere: bool = False
) -> dict[str, Tensor]:
    """Return the terms of ``ortho_penalty``: a scalar for each penalised convolution, in the network's order."""
    return OrthoPenalty(module, strided=strided, skip=skip, everywhere=everywhere).per_conv()


def deal_out(convs: Iterable[tuple[str, Conv]], parts: int, strided: str = PUBLISHED) -> list[list[tuple[str, Conv]]]:
    """Split named convolutions into ``parts`` parts that cost about the same, in the same way on every rank."""
    convs = list(convs)
    costs = [Grams(shape_of(conv), strided).cost() for _, conv in convs]
    return [[convs[i] for i in jobs] for jobs in balance(costs, parts)]


def _groups(convs: dict[str, Conv], strided: str) -> Iterator[tuple[Grams, dict[str, Conv]]]:
    """Group the convolutions of one shape, as many at a time as keep the largest intermediate result in the cache."""
    alike: dict[tuple, dict[str, Conv]] = defaultdict(dict)
    for name, conv in convs.items():
        alike[Grams(shape_of(conv), strided), conv.weight.dtype, conv.weight.device][name] = conv
    for (grams, _, _), same in alike.items():
        together = max(1, _TOGETHER // grams.values)
        names = list(same)
        for start in range(0, len(names), together):
            yield grams, {name: same[name] for name in names[start : start + together]}
