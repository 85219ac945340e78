"""Image files in class folders: lists them, and refuses everything that a plain listing would silently leave out."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isonet.data.decode import read_file
from isonet.data.sources import EncodedSource
from isonet.errors import DataError, printable

log = logging.getLogger("isonet")


IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


@dataclass(frozen=True)
class FolderSource(EncodedSource):
    """Image files, such as those that ``image_folder`` lists."""

    paths: Sequence[Path]
    labels: Sequence[int]
    classes: Sequence[str]

    def encoded(self, index: int) -> tuple[bytes, Path]:
        return read_file(self.paths[index]), self.paths[index]


def image_folder(root: Path, split: str, classes: Sequence[str] | None = None) -> FolderSource:
    """List the images of ``root/split/<class>/``, at any depth below the class folder, sorted by path.

    A label is the position of its class in ``classes`` (those of a checkpoint, say), by default among the folders of
    ``root/train`` or, if there is no such folder, of ``root/split``. Links are followed; hidden files and folders,
    whose names begin with a dot, are ignored. Raises ``DataError`` for everything that leaves a doubt about the set.
    """
    with _named_errors(root):
        folder = root / split
        names = _classes_in(folder)
        if classes is None:
            classes = names if split == "train" or not (root / "train").is_dir() else _subfolders(root / "train")
        check_known(folder, names, classes)
        paths: list[Path] = []
        labels: list[int] = []
        for name in names:
            images = images_below(folder / name)
            if not images:
                raise DataError(
                    f"{printable(folder / name)}: the class has no image ({', '.join(IMG_EXTENSIONS)}); "
                    "add images or remove the folder"
                )
            paths += images
            labels += [classes.index(name)] * len(images)
        return FolderSource(paths, labels, classes)


def _classes_in(folder: Path) -> list[str]:
    place = printable(folder)
    if not folder.is_dir():
        what = "is a broken link, or a link to itself" if folder.is_symlink() else "no such folder"
        raise DataError(f"{place}: {what}; images belong at {place}/<class>/ (see DATASET.ROOT, DATASET.NAME)")
    names = _subfolders(folder)
    if not names:
        raise DataError(f"{place}: has no class folders; images belong at {place}/<class>/")
    return names


def check_known(folder: Path, names: Sequence[str], classes: Sequence[str]) -> None:
    """Raise ``DataError`` if ``folder`` has a class that is not one of ``classes``; warn if it lacks some of them."""
    present = set(names)
    if unknown := sorted(present - set(classes)):
        raise DataError(
            f"{printable(folder / unknown[0])}: not one of the {len(classes)} classes of the training set "
            f"({printable(', '.join(classes[:3]))}, ...)"
        )
    if missing := [name for name in classes if name not in present]:
        first = printable(", ".join(missing[:3])) + (", ..." if len(missing) > 3 else "")
        log.warning("%s: lacks %d of the %d classes: %s", printable(folder), len(missing), len(classes), first)


def _subfolders(folder: Path) -> list[str]:
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                names.append(entry.name)
            elif not os.path.exists(entry.path):
                # Ignoring it would change the labels of the classes after it
                raise DataError(f"{printable(entry.path)}: is a broken link; repair or remove it")
    return sorted(names)


def images_below(folder: Path) -> list[Path]:
    """List the images at any depth below ``folder``, sorted by path; follows links, ignores hidden files and folders.

    Raises ``DataError`` for a loop of links and for what has an image's name and is no file, and ``OSError``.
    """
    images: list[str] = []
    to_do: list[tuple[str, tuple[tuple[int, int], ...]]] = [(str(folder), ())]  # folders, and the folders above each
    while to_do:
        place, above = to_do.pop()
        status = os.stat(place)
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise DataError(f"{printable(place)}: is a link to a folder above it, an endless loop; remove it")
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
    """Whether the name is that of an image. A broken link counts as well: reading it fails like a damaged image."""
    named = entry.name.lower().endswith(IMG_EXTENSIONS)
    if not entry.is_file():
        there = os.path.exists(entry.path)
        if named and there:
            raise DataError(f"{printable(entry.path)}: is a pipe, a socket or a device, not a file; remove it")
        if not named and not there and not os.path.splitext(entry.name)[1]:
            raise DataError(f"{printable(entry.path)}: is a broken link, perhaps to a folder; repair or remove it")
    return named


@contextlib.contextmanager
def _named_errors(root: Path) -> Iterator[None]:
    """Turn an ``OSError`` into a ``DataError`` that names the folder."""
    try:
        yield
    except OSError as error:
        place = printable(error.filename or root)
        if error.errno == errno.ELOOP:
            raise DataError(f"{place}: is a link that leads back to itself; remove it") from None
        raise DataError(f"{place}: cannot be listed ({error.strerror}); check its permissions") from None
