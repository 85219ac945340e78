"""The largest and the smallest singular value of a Jacobian that is never written down.

Golub-Kahan-Lanczos bidiagonalisation: products with the Jacobian (forward mode) and with its transpose (a backward
pass) build two orthonormal bases in which it is bidiagonal; the singular values of that small matrix approach its
extreme ones from within. Every new direction is made orthogonal to all before it, so that none is found twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from isonet.errors import NonFiniteError

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Extremes:
    """Of the singular values that the shape allows, as many as the smaller space has dimensions.

    The true largest is at least ``largest``, the true smallest at most ``smallest``. Some singular value lies within
    ``largest_error`` of the one, some within ``smallest_error`` of the other.
    """

    largest: float
    largest_error: float
    smallest: float
    smallest_error: float
    steps: int


def jacobian_of(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Product, Product, int, int]:
    """Products with the Jacobian of ``function`` at ``at`` and with its transpose, and its columns and rows.

    The products take and return flat vectors.
    """
    at = at.detach()
    with torch.enable_grad():
        point = at.clone().requires_grad_()
        output = function(point)
        # Twice backward is forward: what the transpose gives is linear in what it is given, and this its gradient.
        # So SReLU's own rule at ties holds in both directions
        given = torch.zeros_like(output, requires_grad=True)
        (back,) = torch.autograd.grad(output, point, given, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        return torch.autograd.grad(back, given, vector.view_as(at), retain_graph=True)[0].flatten()

    def transposed(vector: Tensor) -> Tensor:
        return torch.autograd.grad(output, point, vector.view_as(output), retain_graph=True)[0].flatten()

    return product, transposed, at.numel(), output.numel()


def extreme_singular_values(
    function: Callable[[Tensor], Tensor],
    at: Tensor,
    steps: int = 60,
    tolerance: float = 1e-3,
    seed: int = 0,
    name: str = "",
) -> Extremes:
    """Of the Jacobian of ``function`` at ``at``, both tensors of any shape.

    Ends after ``steps``, each of which costs a forward and a backward product, or when both errors are below
    ``tolerance`` times the largest, or when the whole space is searched: then the values are exact. Raises
    ``NonFiniteError``, which calls the function ``name`` (else its class), where a product with the Jacobian overflows.
    """
    name = name or type(function).__name__
    product, transposed, columns, rows = jacobian_of(function, at)
    if rows <= columns:  # begin in the smaller space, of which the Jacobian forgets nothing by its shape alone
        product, transposed = transposed, product
    small = min(rows, columns)
    rng = torch.Generator(at.device).manual_seed(seed)
    right = [_unit(torch.randn(small, dtype=at.dtype, device=at.device, generator=rng))[0]]
    left: list[Tensor] = []
    diagonal: list[float] = []
    above: list[float] = []
    while True:
        direction, length = _unit(_orthogonal(product(right[-1]), left))
        _check_finite(length, name)
        left.append(direction)
        diagonal.append(length)
        following, length = _unit(_orthogonal(transposed(direction), right))
        _check_finite(length, name)
        count = len(diagonal)
        if count == small or length <= torch.finfo(at.dtype).eps * max(diagonal) * count:
            length = 0.0  # nothing new is left
        found = _extremes(diagonal, above, length)
        settled = max(found.largest_error, found.smallest_error) <= tolerance * found.largest
        if settled or count >= steps or not length:
            return found
        right.append(following)
        above.append(length)


def _check_finite(length: float, name: str) -> None:
    if not math.isfinite(length):
        raise NonFiniteError(
            f"{name}: its Jacobian is not finite, so it has no singular values; the weights, the multipliers or the "
            "signal that reaches it are too large, or not numbers"
        )


def _extremes(diagonal: list[float], above: list[float], beyond: float) -> Extremes:
    """Of the bidiagonal matrix, which goes on with ``beyond``."""
    count = len(diagonal)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if above:
        matrix += torch.diag(torch.tensor(above, dtype=torch.float64), 1)
    left, values, _ = torch.linalg.svd(matrix)
    errors = beyond * left[-1].abs()
    return Extremes(values[0].item(), errors[0].item(), values[-1].item(), errors[-1].item(), count)


def _orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """``vector`` without its part in the span of ``basis``; twice, since once is not enough in floating point."""
    for _ in range(2):
        for other in basis:
            vector = vector - (other @ vector) * other
    return vector


def _unit(vector: Tensor) -> tuple[Tensor, float]:
    length = vector.norm()
    return vector / length.clamp(min=torch.finfo(vector.dtype).tiny), length.item()
