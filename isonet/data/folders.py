"""Image files in class folders: what is there, and everything that would be left out without a word."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from isonet.data.decode import read_image, read_tensor
from isonet.errors import DataError, printable

log = logging.getLogger("isonet")


@dataclass(frozen=True)
class FolderSource:
    """Image files, such as those that ``image_folder`` finds."""

    paths: Sequence[Path]
    labels: Sequence[int]
    classes: Sequence[str]

    def read(self, index: int) -> Image.Image:
        return read_image(self.paths[index])

    def read_tensor(self, index: int) -> Tensor:
        return read_tensor(self.paths[index])


def image_folder(root: Path, split: str, classes: Sequence[str] | None = None) -> FolderSource:
    """The images of ``root/split/<class>/``, at any depth below the class folder, sorted by path.

    A label is the position of its class in ``classes`` (such as a checkpoint carries), else among the
    folders of ``root/train``, else among those of ``root/split``. Links are followed; what is hidden,
    with a name that begins with a dot, is no part of the set.
    """
    with _named_errors(root):
        folder = root / split
        found = _classes_in(folder)
        if classes is None:
            classes = found if split == "train" or not (root / "train").is_dir() else _subfolders(root / "train")
        check_known(folder, found, classes)
        paths: list[Path] = []
        labels: list[int] = []
        for name in found:
            images = images_below(folder / name)
            if not images:
                raise DataError(
                    f"{printable(folder / name)}: the class holds no image ({', '.join(IMG_EXTENSIONS)}); "
                    "fill or remove it"
                )
            paths += images
            labels += [classes.index(name)] * len(images)
        return FolderSource(paths, labels, classes)


def _classes_in(folder: Path) -> list[str]:
    place = printable(folder)
    if not folder.is_dir():
        what = "a link to nothing or to itself" if folder.is_symlink() else "no such folder"
        raise DataError(f"{place}: {what}; images belong at {place}/<class>/ (see DATASET.ROOT, DATASET.NAME)")
    found = _subfolders(folder)
    if not found:
        raise DataError(f"{place}: holds no class folders; images belong at {place}/<class>/")
    return found


def check_known(folder: Path, found: Sequence[str], classes: Sequence[str]) -> None:
    """A class that was never learned cannot be labelled; one that is not asked for is legal, but worth a word."""
    if strangers := sorted(set(found) - set(classes)):
        raise DataError(
            f"{printable(folder / strangers[0])}: not one of the {len(classes)} classes of the training set, "
            f"which begin with {printable(', '.join(classes[:3]))}"
        )
    present = set(found)
    if missing := [name for name in classes if name not in present]:
        names = printable(", ".join(missing[:3])) + (", ..." if len(missing) > 3 else "")
        log.warning("%s: lacks %d of the %d classes: %s", printable(folder), len(missing), len(classes), names)


def _subfolders(folder: Path) -> list[str]:
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                names.append(entry.name)
            elif not os.path.exists(entry.path):
                # Without it the labels of the classes after it would be others
                raise DataError(f"{printable(entry.path)}: is a link to nothing; mend or remove it")
    return sorted(names)


def images_below(folder: Path) -> list[Path]:
    """The images at any depth below ``folder``, sorted by path; links are followed, what is hidden is left out."""
    images: list[str] = []
    to_do: list[tuple[str, tuple[tuple[int, int], ...]]] = [(str(folder), ())]  # folders, and those above each
    while to_do:
        place, above = to_do.pop()
        status = os.stat(place)
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise DataError(f"{printable(place)}: is a link to a folder that it lies in, which has no end; remove it")
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):  # such as the ._1.jpg and .AppleDouble of a Mac
                    continue
                if entry.is_dir():
                    to_do.append((entry.path, (*above, here)))
                elif _is_image(entry):
                    images.append(entry.path)
    return sorted(map(Path, images))


def _is_image(entry: os.DirEntry[str]) -> bool:
    """By its name. A link to nothing counts, too: reading it will tell, or leave it out."""
    named = entry.name.lower().endswith(IMG_EXTENSIONS)
    if not entry.is_file():
        there = os.path.exists(entry.path)
        if named and there:
            raise DataError(f"{printable(entry.path)}: is a pipe, a socket or a device, not a file; remove it")
        if not named and not there and not os.path.splitext(entry.name)[1]:
            raise DataError(f"{printable(entry.path)}: is a link to nothing, perhaps to a folder; mend or remove it")
    return named


@contextlib.contextmanager
def _named_errors(root: Path) -> Iterator[None]:
    """Folders that cannot be listed are named, not left out."""
    try:
        yield
    except OSError as error:
        place = printable(error.filename or root)
        if error.errno == errno.ELOOP:
            raise DataError(f"{place}: is a link that leads back to itself; remove it") from None
        raise DataError(f"{place}: cannot be looked into ({error.strerror}); see its permissions") from None
