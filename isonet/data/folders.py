"""Lists image files, in class folders and in others, and raises errors for files that a plain listing would ignore."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isonet.classes import in_order, labels_of
from isonet.data.decode import read_file
from isonet.data.sources import EncodedSource
from isonet.errors import DataError, printable

log = logging.getLogger("isonet")


IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


@dataclass
class FolderSource(EncodedSource):
    """Image files with labels. ``image_folder`` lists the files of class folders."""

    paths: Sequence[Path]
    labels: Sequence[int]
    classes: Sequence[str]

    def encoded(self, index: int) -> tuple[bytes, Path]:
        return read_file(self.paths[index]), self.paths[index]


def image_folder(root: Path, split: str, classes: Sequence[str] | None = None) -> FolderSource:
    """List the images of ``root/split/<class>/``, at any depth below the class folder, sorted by path.

    A label is the position of the class in ``classes``, for example the classes of a checkpoint. By default, the
    classes are the folders of ``root/train`` or, if there is no such folder, of ``root/split``, in the order of
    ``in_order``. Links are followed. Hidden files and folders, whose names begin with a dot, are ignored. Raises
    ``DataError`` for everything that leaves a doubt about the data set.
    """
    folder = root / split
    names = _class_names(folder)
    own = _in_order(folder, names)
    if classes is None:
        train = root / "train"
        classes = _in_order(train, _class_names(train)) if train.is_dir() else own
    paths: list[Path] = []
    labels: list[int] = []
    for name, label in zip(names, labels_of(names, classes, folder), strict=True):
        images = images_below(folder / name)
        paths += images
        labels += [label] * len(images)
    return FolderSource(paths, labels, classes)


def images_below(folder: Path) -> list[Path]:
    """List the images at any depth below ``folder``, sorted by path. Follow links, and ignore hidden files and folders.

    Raises ``DataError`` if there is no image, for a loop of links, and for what is neither a file nor a folder.
    """
    images = sorted(map(Path, _walk(str(folder), ())))
    if not images:
        raise DataError(
            f"{printable(folder)} has no image ({', '.join(IMG_EXTENSIONS)}); add images or remove the folder"
        )
    return images


def find_images(places: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Return the paths of the files in ``places`` and of the images below its folders, and a message for each problem.

    Files are in the given order, and the images below a folder are sorted by path. A file may have any name. Below a
    folder, files with the extension of an image count, except hidden files. No file is opened here.
    """
    paths: list[Path] = []
    problems = []
    for place in map(Path, places):
        try:
            if os.path.isdir(place):
                paths += images_below(place)
            elif os.path.isfile(place):
                paths.append(place)
            else:  # reading a pipe can block forever
                problems.append(f"{printable(place)}: no such file or folder, or a pipe, a socket or a device")
        except DataError as error:
            problems.append(str(error))
    return paths, problems


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the images below a folder. above: the real paths of the folders that contain it."""
    here = os.path.realpath(folder)
    if here in above:
        raise DataError(f"{printable(folder)} is a link to a folder above it, an endless loop; remove it")
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(entry.path, (*above, here))
        elif _is_image(entry):
            yield entry.path


def _in_order(folder: Path, names: Sequence[str]) -> list[str]:
    try:
        return in_order(names)
    except DataError as error:
        raise DataError(f"{printable(folder)}: {error}") from None


def _class_names(folder: Path) -> list[str]:
    """Return the names of the class folders, sorted as text, which is the order in which their images are listed."""
    names = sorted(entry.name for entry in _entries(folder) if entry.is_dir())
    if not names:
        raise DataError(f"{printable(folder)} has no class folders; images belong at {printable(folder)}/<class>/")
    return names


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return the files and folders in ``folder`` that are not hidden, and the broken links with an image's extension.

    Reading such a link fails like reading a damaged image. Raises ``DataError`` for anything else: a broken link may
    have been a folder, and ignoring it might change the labels of other classes.
    """
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]  # such as ._1.jpg, by macOS
        for entry in entries:
            if entry.is_dir() or entry.is_file():
                continue
            if os.path.exists(entry.path) or not _is_image(entry):
                raise DataError(f"{printable(entry.path)} is a broken link, a pipe, a socket or a device; remove it")
    except OSError as error:
        raise DataError(
            f"{printable(error.filename or folder)} cannot be listed ({error.strerror}); check its name "
            "(DATASET.ROOT, DATASET.NAME), its permissions and links, or remove it"
        ) from None
    return entries


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMG_EXTENSIONS)
