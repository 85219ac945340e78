"""Runs other people's networks on examples, and compares what they return."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isonet.errors import UserError

_IMAGES = 8
_GRID = 8  # random values along each side of a random image


class ModelError(UserError, ValueError):
    """Raised for a network that cannot be made isometric with the given arguments."""


def run(model: Callable[[Tensor], Any], example: Tensor) -> Any:
    """Call ``model`` on a copy of ``example``. Raises ``ModelError`` if the network raises an error."""
    try:
        return model(example.clone())
    except Exception as error:
        raise ModelError(f"the network fails on shape {tuple(example.shape)} ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """The type of ``error`` and the start of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.100}"


def eight_images(example: Tensor) -> Tensor:
    """The first eight images of ``example``, filled up with random images of the same mean and standard deviation.

    Equal images count as one, and a constant image has deviation 1. The random images are smooth, like photographs.
    With white noise, which average pooling removes, the check would report networks that can learn photographs as dead.
    """
    if not example.is_floating_point():
        return example[:_IMAGES]
    example = example[:1] if (example == example[:1]).all() else example[:_IMAGES]
    shape = [_IMAGES - len(example), *example.shape[1:2], *(min(_GRID, size) for size in example.shape[2:])]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if shape[0] == 0:
        return example
    if mode := {3: "linear", 4: "bilinear", 5: "trilinear"}.get(example.ndim):
        noise = F.interpolate(noise, example.shape[2:], mode=mode)
    (noise_std, noise_mean), (std, mean) = (torch.std_mean(x.float().cpu(), unbiased=False) for x in (noise, example))
    return torch.cat([example, ((noise - noise_mean) / noise_std * (std or 1) + mean).to(example)])


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal, bit for bit: tensors, other objects, or containers of them."""
    parts, others = _parts(one), _parts(other)
    if parts is not None and others is not None:
        return parts.keys() == others.keys() and all(same(part, others[key]) for key, part in parts.items())
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    except AssertionError:
        return False
    except TypeError:  # neither tensors nor numbers
        return bool(one == other)
    return True


def tensors(result: Any) -> Iterator[Tensor]:
    """All tensors in a result."""
    if isinstance(result, Tensor):
        yield result
    for part in (_parts(result) or {}).values():
        yield from tensors(part)


def _parts(result: Any) -> dict[Any, Any] | None:
    """The content of a mapping, a sequence or a dataclass; None for anything else."""
    if isinstance(result, Mapping):
        return dict(result)
    if isinstance(result, Sequence) and not isinstance(result, str | bytes):
        return dict(enumerate(result))
    return vars(result) if is_dataclass(result) and hasattr(result, "__dict__") else None
