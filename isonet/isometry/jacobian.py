"""The largest and the smallest singular value of a Jacobian, computed from products with vectors alone.

Golub-Kahan-Lanczos bidiagonalisation: products with the Jacobian (forward mode) and with its transpose (a backward
pass) build two orthonormal bases in which the Jacobian is bidiagonal. The extreme singular values of that small matrix
approach the extreme singular values of the Jacobian from within. Each new direction is orthogonalised against all
earlier ones, so that no singular value is counted twice.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from isonet.errors import NonFiniteError

Product = Callable[[Tensor], Tensor]

_DETERMINED = 0.1  # the largest error of a determined value, as a fraction of the value


@dataclass(frozen=True)
class Extremes:
    """Bounds on the extremes of the min(rows, columns) singular values after ``steps`` steps.

    The largest singular value is at least ``largest``, and the smallest is at most ``smallest``. A singular value is
    within ``largest_error`` of ``largest``, and one is within ``smallest_error`` of ``smallest``. Values below
    ``rounding`` cannot be distinguished from 0.
    """

    largest: float
    largest_error: float
    smallest: float
    smallest_error: float
    steps: int
    rounding: float

    @property
    def largest_is_bound(self) -> bool:
        """Whether the largest singular value is not determined. ``largest`` is then a lower bound on it."""
        return self.largest_error > _DETERMINED * self.largest

    @property
    def smallest_is_bound(self) -> bool:
        """Whether the smallest singular value is not determined.

        The larger of ``smallest`` and ``rounding`` is then an upper bound on it, and it may be 0.
        """
        return self.smallest_error > _DETERMINED * self.smallest or self.smallest <= self.rounding


def jacobian_of(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Product, Product, int, int]:
    """Return the products of flat vectors with the Jacobian of ``function`` at ``at`` and with its transpose.

    The result contains the two functions, and the numbers of columns and rows of the Jacobian.
    """
    at = at.detach()
    with torch.enable_grad():
        point = at.clone().requires_grad_()
        output = function(point)
        # Two backward passes make a forward product: ``back`` is linear in ``given``, and its derivative is the
        # Jacobian's transpose. Unlike forward mode, this uses SReLU's own gradient at ties
        given = torch.zeros_like(output, requires_grad=True)
        (back,) = torch.autograd.grad(output, point, given, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        return torch.autograd.grad(back, given, vector.view_as(at), retain_graph=True)[0].flatten()

    def transposed(vector: Tensor) -> Tensor:
        return torch.autograd.grad(output, point, vector.view_as(output), retain_graph=True)[0].flatten()

    return product, transposed, at.numel(), output.numel()


def extreme_singular_values(
    function: Callable[[Tensor], Tensor], at: Tensor, steps: int = 60, tolerance: float = 1e-3, name: str = ""
) -> Extremes:
    """Return the extreme singular values of the Jacobian of ``function`` at ``at``.

    The input and output of ``function`` may have any shape. Each step computes a product with the Jacobian and a
    product with its transpose. The search ends after ``steps`` steps, when both errors are below ``tolerance`` times
    the largest value, or when the whole space is searched. In the last case the values are exact. Raises
    ``NonFiniteError`` if a product is not finite. The message contains ``name``, by default the class of ``function``.
    """
    name = name or type(function).__name__
    product, transposed, columns, rows = jacobian_of(function, at)
    if rows <= columns:  # start in the smaller space, which has no direction that the shape alone maps to 0
        product, transposed = transposed, product
    small = min(rows, columns)
    rng = torch.Generator(at.device).manual_seed(0)
    right = [_unit(torch.randn(small, dtype=at.dtype, device=at.device, generator=rng), name)[0]]
    left: list[Tensor] = []
    diagonal: list[float] = []
    above: list[float] = []
    while True:
        direction, length = _unit(_orthogonal(product(right[-1]), left), name)
        left.append(direction)
        diagonal.append(length)
        following, length = _unit(_orthogonal(transposed(direction), right), name)
        count = len(diagonal)
        if count == small or length <= torch.finfo(at.dtype).eps * max(diagonal) * count:
            length = 0.0  # the whole space is searched
        extremes = _extremes(diagonal, above, length, torch.finfo(at.dtype).eps)
        settled = max(extremes.largest_error, extremes.smallest_error) <= tolerance * extremes.largest
        if settled or count >= steps or not length:
            return extremes
        right.append(following)
        above.append(length)


def _extremes(diagonal: list[float], above: list[float], beyond: float, eps: float) -> Extremes:
    """Return the extremes of the bidiagonal matrix.

    beyond: the next entry above the diagonal, which determines the errors. eps: the precision of the products.
    """
    count = len(diagonal)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    matrix += torch.diag(torch.tensor(above, dtype=torch.float64), 1)
    left, values, _ = torch.linalg.svd(matrix)
    errors = beyond * left[-1].abs()
    largest, smallest = values[0].item(), values[-1].item()
    return Extremes(largest, errors[0].item(), smallest, errors[-1].item(), count, eps * count * largest)


def _orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """Remove from ``vector`` its part in the span of ``basis``. Floating point needs two passes for that."""
    for _ in range(2):
        for other in basis:
            vector = vector - (other @ vector) * other
    return vector


def _unit(vector: Tensor, name: str) -> tuple[Tensor, float]:
    """Return the direction and the length of ``vector``, a product with the Jacobian of ``name``."""
    length = vector.norm()
    if not length.isfinite():
        raise NonFiniteError(
            f"{name}: the Jacobian is not finite, so it has no singular values; the weights, the multipliers or the "
            "signal that reaches this part are too large or nan"
        )
    return vector / length.clamp(min=torch.finfo(vector.dtype).tiny), length.item()
