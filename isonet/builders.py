"""The networks by name, from plain arguments: what the configs in ``configs/`` build, without a config.

Each takes images (N, 3, H, W) to (N, num_classes), and is initialised as its config says, in float32 on the CPU. The
ImageNet networks have, with ``pretrained``, the authors' weights: ``True`` those trained with dropout, else a name of
the zoo such as ``"IN1k-ISO18-nodropout"``. Weights for 1,000 classes: for another number the last layer is fresh.
"""

from __future__ import annotations

from isonet.errors import ConfigError
from isonet.files.checkpoint import load_state
from isonet.files.zoo import DROPOUT_RATE, NUM_CLASSES, ZOO, zoo_entry, zoo_weights
from isonet.models.build import CIFAR_BLOCK_LAYERS, architecture, init_network_
from isonet.models.isonet import ISONet
from isonet.models.layers import LayerFactory

_BASIC, _BOTTLENECK = "basic_transform", "bottleneck_transform"


def isonet18(
    num_classes: int = NUM_CLASSES, pretrained: bool | str = False, dropout: float = DROPOUT_RATE[False]
) -> ISONet:
    """ISONet-18 for ImageNet; ``dropout`` is its rate before the last layer."""
    return _imagenet(18, False, num_classes, pretrained, dropout)


def isonet34(
    num_classes: int = NUM_CLASSES, pretrained: bool | str = False, dropout: float = DROPOUT_RATE[False]
) -> ISONet:
    """ISONet-34 for ImageNet; ``dropout`` is its rate before the last layer."""
    return _imagenet(34, False, num_classes, pretrained, dropout)


def isonet50(
    num_classes: int = NUM_CLASSES, pretrained: bool | str = False, dropout: float = DROPOUT_RATE[False]
) -> ISONet:
    """ISONet-50 for ImageNet, of bottlenecks; ``dropout`` is its rate before the last layer."""
    return _imagenet(50, False, num_classes, pretrained, dropout)


def isonet101(
    num_classes: int = NUM_CLASSES, pretrained: bool | str = False, dropout: float = DROPOUT_RATE[False]
) -> ISONet:
    """ISONet-101 for ImageNet, of bottlenecks; ``dropout`` is its rate before the last layer."""
    return _imagenet(101, False, num_classes, pretrained, dropout)


def r_isonet18(
    num_classes: int = NUM_CLASSES, pretrained: bool | str = False, dropout: float = DROPOUT_RATE[True]
) -> ISONet:
    """R-ISONet-18 for ImageNet, with shortcuts; ``dropout`` is its rate before the last layer."""
    return _imagenet(18, True, num_classes, pretrained, dropout)


def r_isonet34(
    num_classes: int = NUM_CLASSES, pretrained: bool | str = False, dropout: float = DROPOUT_RATE[True]
) -> ISONet:
    """R-ISONet-34 for ImageNet, with shortcuts; ``dropout`` is its rate before the last layer."""
    return _imagenet(34, True, num_classes, pretrained, dropout)


def r_isonet50(
    num_classes: int = NUM_CLASSES, pretrained: bool | str = False, dropout: float = DROPOUT_RATE[True]
) -> ISONet:
    """R-ISONet-50 for ImageNet, with shortcuts, of bottlenecks; ``dropout`` is its rate before the last layer."""
    return _imagenet(50, True, num_classes, pretrained, dropout)


def r_isonet101(
    num_classes: int = NUM_CLASSES, pretrained: bool | str = False, dropout: float = DROPOUT_RATE[True]
) -> ISONet:
    """R-ISONet-101 for ImageNet, with shortcuts, of bottlenecks; ``dropout`` is its rate before the last layer."""
    return _imagenet(101, True, num_classes, pretrained, dropout)


def cifar_isonet(
    depth: int, num_classes: int = 10, shortcuts: bool = False, bottleneck: bool = False, dropout: float = 0.0
) -> ISONet:
    """ISONet for images of 32 pixels, of depth 6n+2, or 9n+2 with ``bottleneck``; with ``shortcuts`` R-ISONet."""
    transform = _BOTTLENECK if bottleneck else _BASIC
    per_n = 3 * CIFAR_BLOCK_LAYERS[transform]
    if depth < per_n + 2 or depth % per_n != 2:
        kind = "with" if bottleneck else "without"
        raise ConfigError(
            f"cifar_isonet: depth must be {per_n}n+2 {kind} bottleneck, such as {6 * per_n + 2}, got {depth}"
        )
    return _network(depth, transform, False, shortcuts, num_classes, dropout)


def _imagenet(depth: int, residual: bool, num_classes: int, pretrained: bool | str, dropout: float) -> ISONet:
    transform = _BOTTLENECK if depth >= 50 else _BASIC
    model = _network(depth, transform, True, residual, num_classes, dropout)
    return _with_published_weights(model, depth, residual, pretrained) if pretrained else model


def _network(depth: int, transform: str, imagenet: bool, shortcuts: bool, num_classes: int, dropout: float) -> ISONet:
    """The network with its initial weights; the scalars on the branches of R-ISONet start at 0."""
    if num_classes < 1 or not 0 <= dropout < 1:
        raise ConfigError(
            f"num_classes must be 1 or more and dropout at least 0 and below 1, got {num_classes} and {dropout}"
        )
    layers = LayerFactory(shortcuts=shortcuts, multiplier=0.0 if shortcuts else None)
    model = ISONet(architecture(depth, transform, imagenet), layers, num_classes, dropout)
    init_network_(model)
    return model


def _with_published_weights(model: ISONet, depth: int, residual: bool, pretrained: str | bool) -> ISONet:
    """``model`` filled from the zoo, but for a last layer of another number of classes."""
    entry = next(e for e in ZOO.values() if (e.depth, e.residual, e.dropout) == (depth, residual, True))
    if isinstance(pretrained, str):
        named = zoo_entry(pretrained)
        if (named.depth, named.residual) != (depth, residual):
            raise ConfigError(f"pretrained={pretrained!r} are weights of {named.network}, not of {entry.network}")
        entry = named
    weights = zoo_weights(entry)
    if model.head.fc.out_features != NUM_CLASSES:
        weights.update({f"head.fc.{name}": value for name, value in model.head.fc.state_dict().items()})
    load_state(model, weights, entry.path)
    return model
