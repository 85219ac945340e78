"""The network: a stem, stages of residual blocks, a linear head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from isonet.models.blocks import ResBlock, Transform
from isonet.models.layers import LayerFactory, shift_names
from isonet.models.recompute import run_recomputed, wants_recomputing


class Stem(nn.Module):
    """CIFAR: a 3x3 convolution. ImageNet: a 7x7 of stride 2 and a 3x3 max pool of stride 2."""

    def __init__(self, width: int, layers: LayerFactory, imagenet: bool) -> None:
        super().__init__()
        self.conv = layers.conv(3, width, 7, 2) if imagenet else layers.conv(3, width, 3)
        self.bn = layers.norm(width)
        self.relu = layers.act(width)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.bn(self.conv(x))))


class Head(nn.Module):
    """Mean over the feature map, dropout, linear classifier; (N, width, H, W) -> (N, num_classes)."""

    def __init__(self, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.avg_pool(x).flatten(1)))


def make_stage(
    w_in: int, w_out: int, depth: int, stride: int, transform: Transform, layers: LayerFactory
) -> nn.Sequential:
    """Blocks ``b1`` to ``b<depth>``, the first with the stride and the change of width."""
    first = ResBlock(w_in, w_out, stride, transform, layers)
    rest = [ResBlock(w_out, w_out, 1, transform, layers) for _ in range(depth - 1)]
    return nn.Sequential(OrderedDict((f"b{i}", block) for i, block in enumerate([first, *rest], start=1)))


@dataclass(frozen=True)
class Architecture:
    """The shape of a network: the blocks' branch, and blocks and output channels of each stage."""

    transform: Transform
    depths: Sequence[int]
    widths: Sequence[int]
    stem_width: int
    imagenet_stem: bool


class ISONet(nn.Module):
    """An isometric network, or with batch norm and ReLU its plain ResNet; (N, 3, H, W) -> (N, num_classes).

    Stages are ``s1``, ``s2``, ... and their blocks ``b1``, ``b2``, ...; each stage but the first halves
    the feature map in its first block.

    recompute: in training keep few of the blocks' activations, and compute the rest again in the backward pass.
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
        recompute = self.recompute and wants_recomputing(self)
        for name in self.stage_names:
            stage = getattr(self, name)
            x = run_recomputed(stage, x) if recompute else stage(x)
        return self.head(x)

    def no_weight_decay(self) -> set[str]:
        """The names of the SReLU shifts, which weight decay must leave alone; timm's optimizer factory asks for it."""
        return shift_names(self)
