"""Builds the network of a config, with its initial weights."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn
from yacs.config import CfgNode

from isonet.config import uses_small_images
from isonet.errors import ConfigError
from isonet.init import delta_init_, normal_init_, orthogonal_conv_init_
from isonet.models.blocks import BasicTransform, BottleneckTransform, ResBlock, Transform
from isonet.models.isonet import Architecture, ISONet
from isonet.models.layers import LayerFactory

TRANSFORMS: dict[str, Transform] = {"basic_transform": BasicTransform, "bottleneck_transform": BottleneckTransform}
EXPANSION = {"basic_transform": 1, "bottleneck_transform": 4}  # a stage's width over the width of its 3x3 convolutions
IMAGENET_DEPTHS = {
    "basic_transform": {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)},
    "bottleneck_transform": {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)},
}
CIFAR_BLOCK_LAYERS = {"basic_transform": 2, "bottleneck_transform": 3}


def build_model(cfg: CfgNode) -> ISONet:
    """Return the network of ``cfg``, initialised, in float32 on the CPU.

    Raises ``ConfigError`` for a depth or a transform that fits no network.
    """
    model = assemble(cfg)
    init_network_(model, _kind_of_init(cfg))
    with torch.no_grad():
        model.stem.conv.weight.mul_(cfg.ISON.STEM_GAIN)
    return model


def assemble(cfg: CfgNode) -> ISONet:
    """Return the network of ``cfg`` before its initialisation, for counting it. Raises as ``build_model`` does."""
    ison = cfg.ISON
    layers = LayerFactory(
        batch_norm=ison.HAS_BN,
        srelu=ison.SReLU,
        shortcuts=ison.HAS_ST,
        multiplier=ison.RES_MULTIPLIER if ison.HAS_RES_MULTIPLIER else None,
    )
    arch = architecture(ison.DEPTH, ison.TRANS_FUN, imagenet=not uses_small_images(cfg))
    dropout = ison.DROPOUT_RATE if ison.DROPOUT else 0.0
    return ISONet(arch, layers, cfg.DATASET.NUM_CLASSES, dropout, recompute=cfg.RUNTIME.CHECKPOINT_ACTIVATIONS)


def architecture(depth: int, transform: str, imagenet: bool) -> Architecture:
    """Return the stages of the ImageNet or CIFAR network of ``depth``. Raises ``ConfigError`` if there is none."""
    if transform not in TRANSFORMS:
        raise ConfigError(f"ISON.TRANS_FUN {transform!r} is unknown; choose from {', '.join(TRANSFORMS)}")
    base = (64, 128, 256, 512) if imagenet else (16, 32, 64)
    return Architecture(
        transform=TRANSFORMS[transform],
        depths=_imagenet_depths(depth, transform) if imagenet else _cifar_depths(depth, transform),
        widths=[w * EXPANSION[transform] for w in base],
        stem_width=base[0],
        imagenet_stem=imagenet,
    )


def init_network_(model: nn.Module, convs: str = "delta") -> None:
    """Initialise ``model``, its convolutions by ``convs``, a key of ``INITS``.

    As published, everything else keeps torch's own default: the linear layer's weight and bias, and the 7x7 stem unless
    ``convs`` is "normal". So the seed at construction determines every weight.
    """
    INITS[convs](model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
        # With batch norm, too, each block starts as its shortcut
        if isinstance(module, ResBlock) and module.has_shortcut and isinstance(module.f.last_norm, nn.BatchNorm2d):
            nn.init.zeros_(module.f.last_norm.weight)


INITS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "normal": normal_init_,
    "delta": delta_init_,
    "delta-orthogonal": functools.partial(delta_init_, orthogonal=True),
    "orthogonal": orthogonal_conv_init_,
}


def _kind_of_init(cfg: CfgNode) -> str:
    if not cfg.ISON.DIRAC_INIT:
        return "normal"
    return "orthogonal" if cfg.ISON.ORTHOGONAL_CONV else "delta-orthogonal" if cfg.ISON.DELTA_ORTHOGONAL else "delta"


def _imagenet_depths(depth: int, transform: str) -> tuple[int, ...]:
    table = IMAGENET_DEPTHS[transform]
    if depth not in table:
        others = "; ".join(f"{name}: {', '.join(map(str, depths))}" for name, depths in IMAGENET_DEPTHS.items())
        raise ConfigError(f"no ImageNet network has ISON.DEPTH {depth} with ISON.TRANS_FUN {transform} ({others})")
    return table[depth]


def _cifar_depths(depth: int, transform: str) -> tuple[int, ...]:
    per_n = 3 * CIFAR_BLOCK_LAYERS[transform]  # three stages of n blocks
    n, rest = divmod(depth - 2, per_n)
    if rest or n < 1:
        near = [per_n * m + 2 for m in (max(n, 1), max(n, 1) + 1)]
        raise ConfigError(
            f"ISON.DEPTH {depth} with ISON.TRANS_FUN {transform} must be {per_n}n+2 for images up to 64 px; "
            f"the nearest are {near[0]} and {near[1]}"
        )
    return (n, n, n)
