"""The convolutions of a network, and which of them the method leaves alone."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

# Modules to leave out, each with all modules below it: their names, or a predicate of a module's name and itself,
# which is called for every module
Skip = Iterable[str] | Callable[[str, nn.Module], bool]


class ConvShape(NamedTuple):
    """The geometry of a convolution; for a transposed one, of its adjoint.

    Both have the same weight, (out_channels, in_channels / groups, *kernel).
    """

    out_channels: int
    in_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def step(self) -> tuple[int, ...]:
        """On each axis, the taps from one offset that the penalty counts to the next.

        A tap lies ``dilation`` pixels from its neighbour, and two outputs lie a multiple of ``stride`` pixels apart:
        an offset counts if its length in pixels is such a multiple.
        """
        return tuple(s // math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True))


def shape_of(conv: Conv) -> ConvShape:
    """The shape of ``conv`` or, if it is transposed, of its adjoint."""
    out_channels, in_channels = conv.out_channels, conv.in_channels
    if isinstance(conv, _TRANSPOSED):
        out_channels, in_channels = in_channels, out_channels
    kernel, stride, dilation = tuple(conv.kernel_size), tuple(conv.stride), tuple(conv.dilation)
    return ConvShape(out_channels, in_channels, kernel, stride, dilation, conv.groups)


def kernels_by_group(conv: Conv) -> tuple[Tensor, ...]:
    """Views of the weight, each (out / groups, in / groups, *kernel): every group is a convolution of its own."""
    return conv.weight.chunk(conv.groups)


def named_convs(module: nn.Module, skip: Skip = ()) -> Iterator[tuple[str, Conv]]:
    """Every convolution in ``module``, itself included, with its name, each once, except those in ``skip``.

    Raises ``ValueError`` for a lazy one that has no weight yet, and for a name in ``skip`` that no module has.
    """
    left_out = skipped(module, skip)
    for name, layer in module.named_modules():
        if isinstance(layer, Conv) and not left_out(name, layer):
            if isinstance(layer.weight, nn.UninitializedParameter):
                raise ValueError(f"{name or 'the module'} is lazy: run one forward pass first")
            yield name, layer


def skipped(module: nn.Module, skip: Skip) -> Callable[[str, nn.Module], bool]:
    """A function that tells whether ``skip`` leaves out a module of this name within ``module``.

    Raises ``ValueError`` for a name that no module has.
    """
    named = dict(module.named_modules(remove_duplicate=False))
    if callable(skip):
        roots = [layer for name, layer in named.items() if skip(name, layer)]
    else:
        names = {skip} if isinstance(skip, str) else set(skip)
        for name in sorted(names - named.keys()):
            near = difflib.get_close_matches(name, named, n=1)
            hint = (
                f"; did you mean {near[0]}?"
                if near
                else f"; the outermost are {', '.join(dict(module.named_children()))}"
            )
            raise ValueError(f"skip: no module is named {name!r}{hint}")
        roots = [named[name] for name in names]
    left_out = {id(layer) for root in roots for layer in root.modules()}
    return lambda name, layer: id(layer) in left_out


def is_7x7_stem(conv: Conv) -> bool:
    """Whether ``conv`` is the dense 7x7 of an ImageNet stem, which the method leaves alone."""
    return tuple(conv.kernel_size) == (7, 7) and conv.groups == 1
