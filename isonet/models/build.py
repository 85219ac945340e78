"""The network of a config, with its initial weights."""

import functools
from collections.abc import Callable

import torch
from torch import nn
from yacs.config import CfgNode

from isonet.config import uses_small_images
from isonet.depths import stage_depths
from isonet.init import delta_init_, normal_init_, orthogonal_conv_init_
from isonet.models.isonet import Architecture, BasicTransform, BottleneckTransform, ISONet, ResBlock, Transform
from isonet.models.layers import LayerFactory

Initialiser = Callable[[nn.Module], nn.Module]

# The residual branch, and the ratio of a stage's width to the width of its 3x3 convolutions
TRANSFORMS: dict[str, tuple[Transform, int]] = {
    "basic_transform": (BasicTransform, 1),
    "bottleneck_transform": (BottleneckTransform, 4),
}


def build_model(cfg: CfgNode) -> ISONet:
    """Return the network of ``cfg``, initialised, in float32 on the CPU.

    Raises ``ConfigError`` for a depth or a transform that fits no network.
    """
    model = assemble(cfg)
    init_network_(model, _initialiser(cfg))
    with torch.no_grad():
        model.stem.conv.weight.mul_(cfg.ISON.STEM_GAIN)
    return model


def assemble(cfg: CfgNode) -> ISONet:
    """Return the network of ``cfg`` before its initialisation, for counting. Raises as ``build_model`` does."""
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
    depths = stage_depths(depth, transform, imagenet)
    branch, expansion = TRANSFORMS[transform]
    base = (64, 128, 256, 512) if imagenet else (16, 32, 64)
    return Architecture(branch, depths, [w * expansion for w in base], stem_width=base[0], imagenet_stem=imagenet)


def init_network_(model: nn.Module, init_convs_: Initialiser = delta_init_) -> None:
    """Initialise ``model``. init_convs_: the function of ``isonet.init`` that initialises its convolutions.

    As published, everything else keeps torch's default: the linear layer's weight and bias, and the 7x7 stem unless
    ``init_convs_`` is ``normal_init_``. The seed at construction therefore determines every weight.
    """
    init_convs_(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, ResBlock) and module.has_shortcut:  # even with batch norm, it starts as its shortcut
            norms = [layer for layer in module.f.children() if isinstance(layer, nn.BatchNorm2d)]
            for last in norms[-1:]:
                nn.init.zeros_(last.weight)


def _initialiser(cfg: CfgNode) -> Initialiser:
    if not cfg.ISON.DIRAC_INIT:
        return normal_init_
    if cfg.ISON.ORTHOGONAL_CONV:
        return orthogonal_conv_init_
    return functools.partial(delta_init_, orthogonal=cfg.ISON.DELTA_ORTHOGONAL)
