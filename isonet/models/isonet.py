"""The network: a stem, stages of residual blocks, a linear head. A block has a branch ``f`` and perhaps a shortcut."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from isonet.models.layers import LayerFactory, shift_names


class Stem(nn.Module):
    """CIFAR: a 3x3 convolution. ImageNet: a 7x7 convolution of stride 2 and a 3x3 max pool of stride 2."""

    def __init__(self, width: int, layers: LayerFactory, imagenet: bool) -> None:
        super().__init__()
        self.conv = layers.conv(3, width, 7, 2) if imagenet else layers.conv(3, width, 3)
        self.bn = layers.norm(width)
        self.relu = layers.act(width)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.bn(self.conv(x))))


class Head(nn.Module):
    """Mean over the feature map, dropout and a linear classifier: (N, width, H, W) -> (N, num_classes)."""

    def __init__(self, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.avg_pool(x).flatten(1)))


class BasicTransform(nn.Module):
    """Residual branch of two 3x3 convolutions. The first has the stride."""

    def __init__(self, w_in: int, w_out: int, stride: int, layers: LayerFactory) -> None:
        super().__init__()
        self.a = layers.conv(w_in, w_out, 3, stride)
        self.a_bn = layers.norm(w_out)
        self.a_relu = layers.act(w_out)
        self.b = layers.conv(w_out, w_out, 3)
        self.b_bn = layers.norm(w_out)
        self.shared_scalar = layers.scale()

    def forward(self, x: Tensor) -> Tensor:
        x = self.a_relu(self.a_bn(self.a(x)))
        x = self.b_bn(self.b(x))
        return self.shared_scalar(x)


class BottleneckTransform(nn.Module):
    """Residual branch of 1x1, 3x3 and 1x1 convolutions. The 3x3 has the stride and a quarter of the width."""

    def __init__(self, w_in: int, w_out: int, stride: int, layers: LayerFactory) -> None:
        super().__init__()
        w_inner = w_out // 4
        self.a = layers.conv(w_in, w_inner, 1)
        self.a_bn = layers.norm(w_inner)
        self.a_relu = layers.act(w_inner)
        self.b = layers.conv(w_inner, w_inner, 3, stride)
        self.b_bn = layers.norm(w_inner)
        self.b_relu = layers.act(w_inner)
        self.c = layers.conv(w_inner, w_out, 1)
        self.c_bn = layers.norm(w_out)
        self.shared_scalar = layers.scale()

    def forward(self, x: Tensor) -> Tensor:
        x = self.a_relu(self.a_bn(self.a(x)))
        x = self.b_relu(self.b_bn(self.b(x)))
        x = self.c_bn(self.c(x))
        return self.shared_scalar(x)


Transform = type[BasicTransform] | type[BottleneckTransform]


class ResBlock(nn.Module):
    """``relu(f(x))``, or with shortcuts ``relu(x + f(x))``: (N, w_in, H, W) -> (N, w_out, H / stride, W / stride).

    If the shape changes, the shortcut is a 1x1 convolution.
    """

    def __init__(self, w_in: int, w_out: int, stride: int, transform: Transform, layers: LayerFactory) -> None:
        super().__init__()
        self.has_shortcut = layers.shortcuts
        self.has_proj = layers.shortcuts and (w_in != w_out or stride != 1)
        if self.has_proj:
            self.proj = layers.conv(w_in, w_out, 1, stride)
            self.bn = layers.norm(w_out)
        self.f = transform(w_in, w_out, stride, layers)
        self.relu = layers.act(w_out)

    def forward(self, x: Tensor) -> Tensor:
        if not self.has_shortcut:
            return self.relu(self.f(x))
        shortcut = self.bn(self.proj(x)) if self.has_proj else x
        return self.relu(shortcut + self.f(x))


def make_stage(
    w_in: int, w_out: int, depth: int, stride: int, transform: Transform, layers: LayerFactory
) -> nn.Sequential:
    """Return blocks ``b1`` to ``b<depth>``. The first block has the stride and changes the width."""
    first = ResBlock(w_in, w_out, stride, transform, layers)
    rest = [ResBlock(w_out, w_out, 1, transform, layers) for _ in range(depth - 1)]
    return nn.Sequential(OrderedDict((f"b{i}", block) for i, block in enumerate([first, *rest], start=1)))


@dataclass(frozen=True)
class Architecture:
    """The shape of a network: its residual branch, and the number of blocks and of output channels of each stage."""

    transform: Transform
    depths: Sequence[int]
    widths: Sequence[int]
    stem_width: int
    imagenet_stem: bool


class ISONet(nn.Module):
    """An isometric network or, with batch norm and ReLU, a plain ResNet: (N, 3, H, W) -> (N, num_classes).

    The stages are ``s1``, ``s2``, ... and their blocks ``b1``, ``b2``, ... The first block of every stage except ``s1``
    halves the feature map.

    recompute: whether to use activation checkpointing (Chen et al. 2016) in training. About sqrt(n) outputs of n blocks
    are kept for the backward pass, which recomputes the rest. Values and gradients are bit-identical, except with batch
    norm, which would count each batch twice.
    """

    def __init__(
        self, arch: Architecture, layers: LayerFactory, num_classes: int, dropout: float = 0.0, recompute: bool = False
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.stem = Stem(arch.stem_width, layers, arch.imagenet_stem)
        self.stage_names = [f"s{i}" for i in range(1, len(arch.depths) + 1)]
        w_in = arch.stem_width
        for name, depth, w_out in zip(self.stage_names, arch.depths, arch.widths, strict=True):
            self.add_module(name, make_stage(w_in, w_out, depth, 1 if name == "s1" else 2, arch.transform, layers))
            w_in = w_out
        self.head = Head(w_in, num_classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        stages = [getattr(self, name) for name in self.stage_names]
        if self.recompute and self.training and torch.is_grad_enabled():
            x = self._recomputed([block for stage in stages for block in stage], x)
        else:
            for stage in stages:
                x = stage(x)
        return self.head(x)

    def _recomputed(self, blocks: list[nn.Module], x: Tensor) -> Tensor:
        # checkpoint_sequential keeps all activations of the last segment, where feature maps are smallest. Segments of
        # a stage's sqrt(n) blocks balance what is kept with what is recomputed at a time.
        length = round(math.sqrt(len(blocks) / len(self.stage_names)))
        segments = len(blocks) // length
        # Blocks draw no random numbers
        return checkpoint_sequential(blocks, segments, x, use_reentrant=False, preserve_rng_state=False)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the SReLU shifts, which timm's optimizer factory leaves without weight decay."""
        return shift_names(self)
