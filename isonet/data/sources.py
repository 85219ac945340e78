"""Sources of labelled images, which read one image at a time: arrays here, files in ``folders.py``, tar shards in
``shards/source.py``."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isonet.data.decode import decode_image, decode_tensor
from isonet.errors import DataError


class ImageSource:
    """Labelled images, read by index. A label is a position in ``classes``."""

    classes: Sequence[str]
    labels: Sequence[int] | np.ndarray

    def read(self, index: int) -> Image.Image:
        """Read an image as RGB. Raises ``DataError``: an ``ImageError`` if the image itself is the reason."""
        raise NotImplementedError

    def read_tensor(self, index: int) -> Tensor:
        """Read an image as uint8 (3, H, W), JPEG decoded by torchvision. Raises like ``read``."""
        return torch.from_numpy(np.array(self.read(index))).permute(2, 0, 1)


class EncodedSource(ImageSource):
    """Image files: a subclass says where the bytes of one are."""

    def encoded(self, index: int) -> tuple[bytes, Path]:
        """The bytes of an image's file, and its path for messages."""
        raise NotImplementedError

    def read(self, index: int) -> Image.Image:
        return decode_image(*self.encoded(index))

    def read_tensor(self, index: int) -> Tensor:
        return decode_tensor(*self.encoded(index))


@dataclass(frozen=True)
class ArraySource(ImageSource):
    """Images in memory: uint8 (N, H, W, 3)."""

    images: np.ndarray
    labels: Sequence[int]
    classes: Sequence[str]

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])


def digits(split: str) -> ArraySource:
    """The 8 x 8 handwritten digits that the package ships, as RGB."""
    with resources.files("isonet.data").joinpath("digits/digits.npz").open("rb") as file, np.load(file) as data:
        images, labels, val = data["images"], data["labels"], data["val"]
    rows = val if split == "val" else np.setdiff1d(np.arange(len(labels)), val)
    grey = np.round(images[rows] * (255 / 16)).astype(np.uint8)  # ink 0..16 to bytes
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    return ArraySource(rgb, labels[rows].tolist(), [str(digit) for digit in range(10)])


def cifar(name: str, root: Path, split: str, download: bool) -> ArraySource:
    """CIFAR10 or CIFAR100 through torchvision, which checks and unpacks the archive; ``DataError`` if that fails."""
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = {"CIFAR10": CIFAR10, "CIFAR100": CIFAR100}[name]
    try:
        data = dataset(str(root), train=split == "train", download=download)
    except (OSError, RuntimeError) as error:  # no network, no space; no archive, or a damaged one
        raise DataError(
            f"{name} is missing or damaged under {root} ({error}): set DATASET.DOWNLOAD True, or download "
            f"{dataset.url} and unpack {dataset.filename} so that {root / dataset.base_folder} exists"
        ) from None
    return ArraySource(data.data, data.targets, data.classes)
