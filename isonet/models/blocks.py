"""Residual blocks: a branch ``f`` of two or three convolutions, and a shortcut if the network has them."""

from __future__ import annotations

from torch import Tensor, nn

from isonet.models.layers import LayerFactory


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

    Where the shape changes, the shortcut is a 1x1 convolution.
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
