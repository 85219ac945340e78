"""The convolutions of a network, and which of them the method leaves out."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

# The modules to leave out, each with all of its submodules: their names, or a predicate of name and module that is
# called for every module
Skip = Iterable[str] | Callable[[str, nn.Module], bool]


class ConvShape(NamedTuple):
    """The geometry of a convolution or, if it is transposed, of its adjoint.

    A convolution and its adjoint have the same weight, (out_channels, in_channels / groups, *kernel).
    """

    out_channels: int
    in_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def step(self) -> tuple[int, ...]:
        """The distance in taps, on each axis, between two neighbouring offsets that the penalty counts.

        Neighbouring taps are ``dilation`` pixels apart, and outputs are multiples of ``stride`` pixels apart. An offset
        counts if its length in pixels is a multiple of ``stride``.
        """
        return tuple(s // math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True))


def shape_of(conv: Conv) -> ConvShape:
    """Return the shape of ``conv`` or, if it is transposed, of its adjoint."""
    out_channels, in_channels = conv.out_channels, conv.in_channels
    if isinstance(conv, _TRANSPOSED):
        out_channels, in_channels = in_channels, out_channels
    kernel, stride, dilation = tuple(conv.kernel_size), tuple(conv.stride), tuple(conv.dilation)
    return ConvShape(out_channels, in_channels, kernel, stride, dilation, conv.groups)


def kernels_by_group(conv: Conv) -> tuple[Tensor, ...]:
    """Return a view of the weight for each group, (out / groups, in / groups, *kernel)."""
    return conv.weight.chunk(conv.groups)


def named_convs(module: nn.Module, skip: Skip = ()) -> Iterator[tuple[str, Conv]]:
    """Yield the name and module of every convolution in ``module``, itself included, except those in ``skip``, once.

    Raises ``ValueError`` for a lazy convolution without a weight yet, and for a name in ``skip`` that no module has.
    """
    left_out = skipped(module, skip)
    for name, layer in module.named_modules():
        if isinstance(layer, Conv) and not left_out(name, layer):
            if isinstance(layer.weight, nn.UninitializedParameter):
                raise ValueError(f"{name or 'the module'} is lazy: run one forward pass first")
            yield name, layer


def skipped(module: nn.Module, skip: Skip) -> Callable[[str, nn.Module], bool]:
    """Return a predicate of name and module that says whether ``skip`` leaves a part of ``module`` out.

    Raises ``ValueError`` for a name in ``skip`` that no module has.
    """
    named = dict(module.named_modules(remove_duplicate=False))
    if callable(skip):
        roots = [layer for name, layer in named.items() if skip(name, layer)]
    else:
        names = {skip} if isinstance(skip, str) else set(skip)
        for name in sorted(names - named.keys()):
            near = difflib.get_close_matches(name, named, n=1)
            hint = f"did you mean {near[0]}?" if near else f"at the top are {', '.join(dict(module.named_children()))}"
            raise ValueError(f"skip: no module is named {name!r}; {hint}")
        roots = [named[name] for name in names]
    left_out = {id(layer) for root in roots for layer in root.modules()}
    return lambda name, layer: id(layer) in left_out


def is_7x7_stem(conv: Conv) -> bool:
    """Return whether ``conv`` is a 7x7 without groups, as in an ImageNet stem. The method leaves it out."""
    return tuple(conv.kernel_size) == (7, 7) and conv.groups == 1
