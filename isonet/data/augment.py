"""Image transforms by torchvision, each with a random stream that depends only on the seed, the image and the epoch."""

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

Transform = Callable[[Any], Image.Image | Tensor]


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


def image_transforms(size: int, small: bool, augment: CropFlip | None) -> v2.Compose:
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


class RandomResizedCropFlip(v2.RandomResizedCrop):
    """Torchvision's ``RandomResizedCrop``, then ``RandomHorizontalFlip`` if ``flip``: the same draws and pixels.

    It is faster, because it resizes the crop in the HWC order in which the image was decoded, and dispatches once.
    """

    def __init__(self, size: int, flip: bool) -> None:
        super().__init__(size)
        self.flip = flip

    def forward(self, image: Any) -> Any:
        drawn = self.make_params([image])
        top, left, height, width = (drawn[key] for key in ("top", "left", "height", "width"))
        mirrored = self.flip and torch.rand(1).item() < 0.5
        if not isinstance(image, Tensor):
            square = v2.functional.resized_crop(image, top, left, height, width, self.size)
            return v2.functional.horizontal_flip(square) if mirrored else square
        crop = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
        square = v2.functional.resize_image(crop, self.size)[0]
        return square.flip(-1) if mirrored else square
