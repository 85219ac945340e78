"""Sources of labelled images, which read one image at a time.

This module contains the sources of arrays. ``cifar.py`` reads the batches of CIFAR, ``folders.py`` lists image files,
and ``shards/source.py`` reads tar shards.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isonet.classes import labels_of
from isonet.data.decode import decode_image, decode_tensor


class ImageSource:
    """Labelled images, read by index. A label is a position in ``classes``."""

    classes: Sequence[str]
    labels: Sequence[int] | np.ndarray

    def relabelled(self, classes: Sequence[str] | None, where: Path) -> Self:
        """Return this source with labels that are the positions of the class names in ``classes``.

        classes: None leaves the source unchanged. where: the data set, for messages. Raises ``DataError`` if
        ``classes`` lacks a class of this source.
        """
        if classes is None or list(classes) == list(self.classes):
            return self
        relabelled = copy.copy(self)
        relabelled.labels = np.array(labels_of(self.classes, classes, where))[self.labels]
        relabelled.classes = classes
        return relabelled

    def read(self, index: int) -> Image.Image:
        """Read an image as RGB. Raises ``ImageError`` if the image itself is the reason, otherwise ``DataError``."""
        raise NotImplementedError

    def names(self) -> bytes:
        """Return bytes that identify the images without reading them, such as their file names in order."""
        return b""

    def facts(self, split: str) -> dict[str, Any]:
        """Return the facts that must be equal on all ranks: classes, labels and file names of the images."""
        data = np.asarray(self.labels, "<i8").tobytes() + self.names()
        return {
            f"the number of classes of {split}": len(self.classes),
            **{f"class {label} of {split}": name for label, name in enumerate(self.classes)},
            f"the number of {split} images": len(self.labels),
            f"the digest of the labels and file names of the {split} images": hashlib.blake2b(data).hexdigest()[:16],
        }

    def read_tensor(self, index: int) -> Tensor:
        """Read an image as uint8 (3, H, W), JPEG with torchvision's decoder. Raises the same errors as ``read``."""
        return torch.from_numpy(np.array(self.read(index))).permute(2, 0, 1)


class EncodedSource(ImageSource):
    """Image files. A subclass implements ``encoded``, which reads the bytes of one file."""

    def encoded(self, index: int) -> tuple[bytes | bytearray, Path | str]:
        """Return the bytes of an image's file, and the file's path for messages."""
        raise NotImplementedError

    def read(self, index: int) -> Image.Image:
        return decode_image(*self.encoded(index))

    def read_tensor(self, index: int) -> Tensor:
        return decode_tensor(*self.encoded(index))


@dataclass
class ArraySource(ImageSource):
    """Images in memory: uint8 (N, H, W, 3)."""

    images: np.ndarray
    labels: Sequence[int]
    classes: Sequence[str]

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])


def digits(split: str) -> ArraySource:
    """The 8 x 8 handwritten digits that the package contains, as RGB."""
    with resources.files("isonet.data").joinpath("digits/digits.npz").open("rb") as file, np.load(file) as data:
        images, labels, val = data["images"], data["labels"], data["val"]
    rows = val if split == "val" else np.setdiff1d(np.arange(len(labels)), val)
    grey = np.round(images[rows] * (255 / 16)).astype(np.uint8)  # ink 0..16 to bytes
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    return ArraySource(rgb, labels[rows].tolist(), [str(digit) for digit in range(10)])
