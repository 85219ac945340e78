"""Functions that build the networks of ``configs/`` from plain arguments, without a config.

Each network maps images (N, 3, H, W) to logits (N, num_classes). It is initialised as its config says, in float32 on
the CPU. The ImageNet functions have the argument ``pretrained``: ``True`` selects the authors' weights trained with
dropout, and a name of the zoo such as ``"IN1k-ISO18-nodropout"`` selects other weights. They are for 1,000 classes. The
path of a checkpoint file selects the weights in that file, also for ``cifar_isonet``. If the weights are for another
number of classes, the last layer keeps its initial weights.
"""

import logging
import os
from typing import Protocol, TypeGuard

from isonet.errors import ConfigError
from isonet.files.checkpoint import Checkpoint, load_matching
from isonet.files.run_folder import find_checkpoint
from isonet.files.zoo import zoo_file, zoo_weights
from isonet.models.build import architecture, init_network_
from isonet.models.isonet import ISONet
from isonet.models.layers import LayerFactory
from isonet.published import NUM_CLASSES, PREFIX, ZOO, published

log = logging.getLogger("isonet")


class ImageNetBuilder(Protocol):
    """Builds one of the ImageNet networks. dropout: the dropout rate before the last layer."""

    def __call__(self, num_classes: int = ..., pretrained: bool | str = ..., dropout: float = ...) -> ISONet: ...


def _imagenet(name: str, config: str) -> ImageNetBuilder:
    entry = ZOO[config]

    def build(
        num_classes: int = NUM_CLASSES, pretrained: bool | str = False, dropout: float = entry.dropout_rate
    ) -> ISONet:
        model = _network(entry.depth, entry.transform, True, entry.residual, num_classes, dropout)
        if _is_file(pretrained):
            _load_file(model, pretrained)
        elif pretrained:
            source = published(pretrained) if isinstance(pretrained, str) else entry
            if source.network != entry.network:
                raise ConfigError(f"pretrained={source.name!r} is {source.network}, not {entry.network}")
            load_matching(model, zoo_weights(source), zoo_file(source))
        return model

    build.__name__ = build.__qualname__ = name
    kind = f"{', with shortcuts' * entry.residual}{', of bottlenecks' * (entry.transform == 'bottleneck_transform')}"
    build.__doc__ = f"Return {entry.network} for ImageNet{kind}. dropout: the dropout rate before the last layer."
    return build


isonet18 = _imagenet("isonet18", "IN1k-ISO18")
isonet34 = _imagenet("isonet34", "IN1k-ISO34")
isonet50 = _imagenet("isonet50", "IN1k-ISO50")
isonet101 = _imagenet("isonet101", "IN1k-ISO101")
r_isonet18 = _imagenet("r_isonet18", "IN1k-RISO18")
r_isonet34 = _imagenet("r_isonet34", "IN1k-RISO34")
r_isonet50 = _imagenet("r_isonet50", "IN1k-RISO50")
r_isonet101 = _imagenet("r_isonet101", "IN1k-RISO101")


def cifar_isonet(
    depth: int,
    num_classes: int = 10,
    shortcuts: bool = False,
    bottleneck: bool = False,
    dropout: float = 0.0,
    pretrained: str | None = None,
) -> ISONet:
    """Return the ISONet or, with ``shortcuts``, R-ISONet for 32x32 images.

    depth: 6n+2, or 9n+2 with ``bottleneck``. pretrained: a checkpoint file; None for the initial weights.
    """
    transform = "bottleneck_transform" if bottleneck else "basic_transform"
    model = _network(depth, transform, False, shortcuts, num_classes, dropout)
    if pretrained is not None:
        _load_file(model, pretrained)
    return model


def _is_file(pretrained: bool | str) -> TypeGuard[str]:
    """Return whether ``pretrained`` is the path of a checkpoint or of a run folder, and not a name of the zoo."""
    if not isinstance(pretrained, str) or pretrained.removeprefix(PREFIX) in ZOO:
        return False
    return os.path.exists(pretrained) or os.path.basename(pretrained) != pretrained or "." in pretrained


def _load_file(model: ISONet, name: str) -> None:
    path = find_checkpoint(None, name)
    if load_matching(model, Checkpoint.read(path).weights, path):
        log.warning("%s is for another number of classes: the last layer keeps its initial weights", path)


def _network(depth: int, transform: str, imagenet: bool, shortcuts: bool, num_classes: int, dropout: float) -> ISONet:
    """Return the network with its initial weights. The multipliers of R-ISONet start at 0."""
    if num_classes < 1 or not 0 <= dropout < 1:
        raise ConfigError(
            f"num_classes must be 1 or more and dropout at least 0 and below 1, got {num_classes} and {dropout}"
        )
    layers = LayerFactory(shortcuts=shortcuts, multiplier=0.0 if shortcuts else None)
    model = ISONet(architecture(depth, transform, imagenet), layers, num_classes, dropout)
    init_network_(model)
    return model
