"""The penalty of a whole network, planned once: which convolutions are computed together, and on which rank.

``gram`` computes the penalty of kernels of one shape and its gradient in closed form, from the taps. Here both become
an autograd function of the weights, for any memory layout, any groups and any precision that the process has chosen.
The definition (``isonet.ortho.kernel_penalty``) computes second derivatives, ``torch.func``, forward-mode
differentiation, and the kernels that have no points.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isonet.convs import Conv, Skip, shape_of
from isonet.fast_penalty.gram import Grams
from isonet.ortho import OPERATOR, PUBLISHED, STRIDED, kernel_penalty, penalised_convs, unreachable
from isonet.precision import full_precision
from isonet.private_torch import transforms_active
from isonet.shares import WHOLE, Share, balance

# Numbers in the largest intermediate result: 16 MiB of float32, about the size of a processor's cache
_TOGETHER = 1 << 22


class OrthoPenalty:
    """The penalty of a module's convolutions. Its computation is planned once.

    A call returns the sum over all convolutions, without the coefficient: a scalar in the weights' type, but at least
    float32, regardless of autocast and TF32. It is 0 for a module without a penalised convolution. A call uses the
    module's current weights. After a convolution is added, replaced or moved to another device, create a new object.

    The penalty is defined for 1-d to 3-d convolutions with any stride, dilation and groups, and for transposed ones
    through their adjoint. As in the paper, a 7x7 stem and convolutions with 3 inputs are left out.

    First derivatives of kernels of up to three taps on each of two axes are fast. The definition computes the rest:
    second derivatives, ``torch.func``, forward mode, and larger kernels. A 5x5 takes about twice as long as in the
    paper's formulation, and 2 to 25 times as long as points would (``python -m benchmarks.penalty``).

    share: this rank's share. Each rank computes the penalty of some convolutions. The ranks take about the same time,
    and the sum over the ranks is the penalty.
    strided: "published" or "operator", which differ for strides with more outputs than inputs (``isonet.ortho``).
    skip: the modules to leave out, with all of their submodules: their names, or a predicate of name and module.
    everywhere: whether to count the 7x7 stem and convolutions with 3 inputs, too.

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
    """Return the penalty of all convolutions of ``module``. See ``OrthoPenalty`` for arguments and result."""
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
    """Group convolutions of one shape so that the largest intermediate result of each group fits in the cache."""
    alike: dict[tuple, dict[str, Conv]] = defaultdict(dict)
    for name, conv in convs.items():
        alike[Grams(shape_of(conv), strided), conv.weight.dtype, conv.weight.device][name] = conv
    for (grams, _, _), same in alike.items():
        together = max(1, _TOGETHER // grams.values)
        names = list(same)
        for start in range(0, len(names), together):
            yield grams, {name: same[name] for name in names[start : start + together]}


def gram_penalty(grams: Grams, weights: Sequence[Tensor]) -> Tensor:
    """Return the penalty of each of ``weights``, (out, in / groups, *kernel) of one shape: (len(weights),).

    The result has the weights' type, but at least float32.
    """
    if transforms_active() or not grams.fast:
        return _by_definition(grams, *weights)
    with_grad = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    return _GramPenalty.apply(grams, with_grad, *weights)[0]


def _by_definition(grams: Grams, *weights: Tensor) -> Tensor:
    return torch.stack([kernel_penalty(weight, *grams) for weight in weights])


class _GramPenalty(torch.autograd.Function):
    """Returns the penalties and, for the backward pass, their gradients by taps, (K, layers * groups, C, D).

    ``gram`` computes the first derivative. If that is differentiated again, the definition computes both.
    """

    @staticmethod
    def forward(grams: Grams, with_grad: bool, *weights: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision(weights[0].device):
            taps = _stack_taps(grams, weights)
            penalty, grad = grams.points(taps).penalties(taps, with_grad)
        penalty = penalty.view(len(weights), -1).sum(1)
        if grams.strided == OPERATOR:
            penalty += unreachable(grams.conv)
        return penalty, grad if grad is not None else taps.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.grams, _, *weights = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *weights)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad, *weights = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return None, None, *_differentiable_gradients(ctx.grams, weights, cotangent)
        # (K, layers, groups, C, D), each layer multiplied by its incoming gradient
        grad = grad.reshape(-1, len(weights), ctx.grams.conv.groups, *grad.shape[2:]) * cotangent.view(-1, 1, 1, 1)
        return None, None, *(_from_taps(ctx.grams, g, w) for g, w in zip(grad.unbind(1), weights, strict=True))


def _differentiable_gradients(grams: Grams, weights: Sequence[Tensor], cotangent: Tensor) -> list[Tensor | None]:
    """Return the definition's gradients as functions of the weights and of the incoming gradient, (layers,)."""
    wanted = [weight for weight in weights if weight.requires_grad]
    gradients = iter(torch.autograd.grad(_by_definition(grams, *weights), wanted, cotangent, create_graph=True))
    return [_laid_out_like(weight, next(gradients)) if weight.requires_grad else None for weight in weights]


def _laid_out_like(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return ``gradient`` in the type and memory layout of ``weight``, as a fused optimizer requires."""
    return torch.empty_like(weight, requires_grad=False).copy_(gradient)


def _stack_taps(grams: Grams, weights: Sequence[Tensor]) -> Tensor:
    """Stack weights (out, in / groups, *kernel) to (K, layers * groups, C, D). Each group is a separate convolution."""
    shape = grams.conv
    by_group = (shape.groups, shape.out_channels // shape.groups, shape.in_channels // shape.groups, -1)
    order = (3, 0, 2, 1) if grams.exchanged else (3, 0, 1, 2)
    taps = torch.cat([weight.detach().reshape(by_group).permute(order) for weight in weights], dim=1)
    return taps.to(torch.promote_types(taps.dtype, torch.float32))


def _from_taps(grams: Grams, taps: Tensor, weight: Tensor) -> Tensor:
    """Invert ``_stack_taps`` for one layer: (K, groups, C, D) -> (out, in / groups, *kernel), like ``weight``."""
    order = (1, 3, 2, 0) if grams.exchanged else (1, 2, 3, 0)
    return _laid_out_like(weight, taps.permute(order).flatten(0, 1).unflatten(2, grams.conv.kernel))
