"""Finding the convolutions of a network, and the rule that sets its stem apart."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


def named_convs(module: nn.Module) -> Iterator[tuple[str, Conv]]:
    """Every convolution in ``module``, itself included, with its name, each once.

    Raises ``ValueError`` for a transposed convolution, which neither the penalty nor the
    initialisation defines, and for a lazy one that has no weight yet.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            raise ValueError(f"{name or 'the module'} is a {type(layer).__name__}: transposed convs are not supported")
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            if isinstance(layer.weight, nn.UninitializedParameter):
                raise ValueError(f"{name or 'the module'} is lazy: run one forward pass first")
            yield name, layer


def is_7x7_stem(conv: Conv) -> bool:
    """Whether ``conv`` is the dense 7x7 of an ImageNet stem, which the method leaves alone."""
    return conv.kernel_size == (7, 7) and conv.groups == 1
