"""Image transforms by torchvision, each with a random stream that depends only on the seed, the image and the epoch."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from isonet.data.memory import CropFlip
from isonet.data.random_streams import stream_seed

EVAL_RESIZE = 256 / 224  # shorter side before the centre crop / side of the crop

Transform = Callable[[Any], Any]  # of an image, PIL or uint8 (3, H, W), to an image of the same kind


class Augment:
    """Applies ``transform`` to an image with random numbers that depend only on the seed, the image and the epoch.

    transform: a function from an image to a square image, PIL or uint8 (3, H, W).
    """

    def __init__(self, transform: Transform, seed: int) -> None:
        self.transform = transform
        self.seed = seed

    def __call__(self, image: Image.Image | Tensor, epoch: int, index: int) -> Tensor:
        """The transformed image as uint8 (H, W, 3)."""
        rng = torch.default_generator  # torchvision's transforms use it; torch.manual_seed would also seed every GPU
        state = rng.get_state()
        rng.manual_seed(stream_seed(self.seed, "augment", epoch, index))
        try:
            square = self.transform(image)
        finally:
            rng.set_state(state)
        if isinstance(square, Tensor):
            return square.permute(1, 2, 0).contiguous()
        return torch.from_numpy(np.array(square))


def to_square(size: int) -> v2.Compose:
    """Return a transform that resizes the shorter side and crops the centre. It keeps an image of the right size."""
    return v2.Compose([v2.Resize(size), v2.CenterCrop(size)])


def image_transforms(size: int, small: bool, augment: CropFlip | None) -> Transform:
    """Return the transform of an image, PIL or tensor, to a square of ``size`` pixels a side, with bilinear resizing.

    small: whether the images are small, like CIFAR's: these are resized to ``size`` before any crop. augment: the crop
    and flip of training images; None for evaluation.
    """
    if small:
        crop = [v2.RandomCrop(size, augment.padding)] if augment else []
        flip = [v2.RandomHorizontalFlip()] if augment and augment.flip else []
        return v2.Compose([to_square(size), *crop, *flip])
    if augment:
        return RandomResizedCropFlip(size, augment.flip)
    return v2.Compose([v2.Resize(round(size * EVAL_RESIZE)), v2.CenterCrop(size)])


class RandomResizedCropFlip:
    """A random resized crop, then a horizontal flip with probability 1/2 if ``flip``.

    Draws and pixels equal those of torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip``. Drawing takes a
    third of the time, and the crop is resized in the HWC order in which the image was decoded.
    """

    SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # share of the area, width / height

    def __init__(self, size: int, flip: bool) -> None:
        self.size = [size, size]
        self.flip = flip
        self.log_ratio = torch.tensor(self.RATIO).log().tolist()

    def __call__(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        whole = image.shape[1:] if isinstance(image, Tensor) else image.size[::-1]
        top, left, height, width = self.draw(*whole)
        flipped = self.flip and torch.rand(1).item() < 0.5
        if not isinstance(image, Tensor):
            square = v2.functional.resized_crop(image, top, left, height, width, self.size)
            return v2.functional.horizontal_flip(square) if flipped else square
        crop = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
        pixels = v2.functional.resize_image(crop, self.size)[0]
        return pixels.flip(-1) if flipped else pixels

    def draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Draw the top, left, height and width of a crop of an image with torch's global generator."""
        for _ in range(10):
            area = height * width * torch.empty(1).uniform_(*self.SCALE).item()
            ratio = torch.empty(1).uniform_(*self.log_ratio).exp_().item()
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                top, left = torch.randint(height - h + 1, (1,)), torch.randint(width - w + 1, (1,))
                return int(top), int(left), h, w
        h, w = min(height, round(width / self.RATIO[0])), min(width, round(height * self.RATIO[1]))
        return (height - h) // 2, (width - w) // 2, h, w  # the centre of a long image
