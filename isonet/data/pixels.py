"""From bytes to what a network is fed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalise:
    """uint8 (N, H, W, 3), anywhere, to float32 (N, 3, H, W) on ``device``: ``(pixel / 255 - mean) / std``.

    channels_last: leave the result in NHWC order in memory, which costs nothing.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device, channels_last: bool) -> None:
        self.device = device
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)  # (3,)
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.device, non_blocking=True)  # a quarter of what the floats would be
        width = pixels.shape[2]
        # A whole row at once: with 3 channels as the last axis a CPU would compute 3 numbers at a time
        rows = pixels.flatten(2).to(torch.float32)  # (N, H, 3 W)
        images = rows.div_(255).sub_(self.mean.repeat(width)).div_(self.std.repeat(width)).unflatten(2, (width, 3))
        return images.permute(0, 3, 1, 2).contiguous(memory_format=self.format)
