"""Where images come from: arrays (CIFAR, digits) or files in class folders. A source reads one image at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from isonet.errors import DataError


class ImageSource(Protocol):
    """Labelled images, read by index."""

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Sequence[int]: ...

    def read(self, index: int) -> Image.Image:
        """The image as RGB; ``DataError`` if it cannot be read."""

    def read_tensor(self, index: int) -> Tensor:
        """The image as uint8 (3, H, W), JPEG decoded by torchvision; ``DataError`` if it cannot be read."""


@dataclass(frozen=True)
class ArraySource:
    """Images in memory: uint8 (N, H, W, 3)."""

    images: np.ndarray
    labels: Sequence[int]
    classes: Sequence[str]

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def read_tensor(self, index: int) -> Tensor:
        return torch.from_numpy(self.images[index]).permute(2, 0, 1)


@dataclass(frozen=True)
class FolderSource:
    """Image files below one folder a class."""

    paths: Sequence[Path]
    labels: Sequence[int]
    classes: Sequence[str]

    def read(self, index: int) -> Image.Image:
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except Exception as error:  # Pillow raises many kinds for a damaged file
            raise DataError(
                f"{path}: cannot be read as an image ({type(error).__name__}: {error}); mend or remove it"
            ) from None

    def read_tensor(self, index: int) -> Tensor:
        path = self.paths[index]
        if path.suffix.lower() in (".jpg", ".jpeg"):
            try:
                return decode_jpeg(read_file(str(path)), ImageReadMode.RGB)
            except (OSError, RuntimeError):
                pass  # such as a PNG of that name: Pillow knows, or says what is wrong
        return torch.from_numpy(np.array(self.read(index))).permute(2, 0, 1)


def digits(split: str) -> ArraySource:
    """The 8x8 handwritten digits that the package ships, as RGB."""
    with resources.files("isonet.data").joinpath("digits/digits.npz").open("rb") as file, np.load(file) as data:
        images, labels, val = data["images"], data["labels"], data["val"]
    rows = val if split == "val" else np.setdiff1d(np.arange(len(labels)), val)
    grey = np.round(images[rows] * (255 / 16)).astype(np.uint8)  # ink 0..16 to bytes
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    return ArraySource(rgb, labels[rows].tolist(), [str(digit) for digit in range(10)])


def cifar(name: str, root: Path, split: str, download: bool) -> ArraySource:
    """CIFAR10 or CIFAR100 through torchvision, which checks and unpacks the archive."""
    dataset = {"CIFAR10": CIFAR10, "CIFAR100": CIFAR100}[name]
    place = f"unpack {dataset.filename} so that {root / dataset.base_folder} exists"
    try:
        data = dataset(str(root), train=split == "train", download=download)
    except OSError as error:  # no network, no space, no permission
        raise DataError(
            f"{name}: cannot be fetched into {root} ({error}). By hand: get {dataset.url} and {place}"
        ) from None
    except RuntimeError as error:
        hint = f"{place}, or let it be fetched with the override DATASET.DOWNLOAD True"
        raise DataError(f"{name} is missing or damaged under {root} ({error}): {hint}") from None
    return ArraySource(data.data, data.targets, data.classes)


def image_folder(root: Path, split: str, classes: Sequence[str] | None = None) -> FolderSource:
    """The images of ``root/split/<class>/``, at any depth below the class folder, sorted by path.

    A label is the position of its class in ``classes`` (such as a checkpoint carries), else among the
    folders of ``root/train``, else among those of ``root/split``.
    """
    folder = root / split
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; images belong at {folder}/<class>/ (see DATASET.ROOT, DATASET.NAME)"
        )
    found = _subfolders(folder)
    if not found:
        raise DataError(f"{folder}: holds no class folders; images belong at {folder}/<class>/")
    if classes is None:
        classes = _subfolders(root / "train") if (root / "train").is_dir() else found
    if strangers := sorted(set(found) - set(classes)):
        raise DataError(
            f"{folder / strangers[0]}: not one of the {len(classes)} classes of the training set, "
            f"which begin with {', '.join(classes[:3])}"
        )

    paths: list[Path] = []
    labels: list[int] = []
    for name in found:
        images = _images_below(folder / name)
        if not images:
            raise DataError(
                f"{folder / name}: the class holds no image ({', '.join(IMG_EXTENSIONS)}); fill or remove it"
            )
        paths += images
        labels += [classes.index(name)] * len(images)
    return FolderSource(paths, labels, classes)


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")
    )
