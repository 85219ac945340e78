"""Lists image files, in class folders and in other folders, and warns about ignored files.

A warning counts the ignored files that could be images: files with other extensions, hidden files and folders, and
files outside the class folders. Text files such as annotations and the hidden files of macOS and Windows are ignored
without a warning.
"""

import logging
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from isonet.classes import in_order, labels_of
from isonet.data.decode import read_file
from isonet.data.formats import IMG_EXTENSIONS, NO_IMAGES
from isonet.data.sources import EncodedSource
from isonet.errors import DataError, printable

log = logging.getLogger("isonet")

_OF_SYSTEMS = ("._", ".AppleDouble")  # macOS stores the attributes of files in them


class Paths(Sequence[Path]):
    """A sequence of paths that stores them as bytes.

    A million ``Path`` objects occupy 300 MB, and each worker process that uses them ends up with its own copy, because
    reading an object changes its reference count.
    """

    def __init__(self, paths: Iterable[str | Path] = ()) -> None:
        self._bytes, self._ends = bytearray(), array("q")
        self.extend(paths)

    def extend(self, paths: Iterable[str | Path]) -> None:
        for path in paths:
            self._bytes += os.fsencode(path)
            self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        """Return the path at a position, or a list of the paths of a slice."""
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return Path(os.fsdecode(self._encoded(range(len(self))[index])))

    def names(self) -> list[bytes]:
        """Return the name of each file, without its folders, as bytes."""
        return [os.path.basename(self._encoded(at)) for at in range(len(self))]

    def _encoded(self, at: int) -> bytes:
        return bytes(self._bytes[self._ends[at - 1] if at else 0 : self._ends[at]])


class FolderSource(EncodedSource):
    """Image files with labels. ``image_folder`` lists the files of class folders."""

    def __init__(self, paths: Iterable[str | Path], labels: Sequence[int], classes: Sequence[str]) -> None:
        self.paths = paths if isinstance(paths, Paths) else Paths(paths)
        self.labels, self.classes = labels, classes

    def encoded(self, index: int) -> tuple[bytes, Path]:
        path = self.paths[index]
        return read_file(path), path

    def names(self) -> bytes:
        return b"\0".join(self.paths.names())


def image_folder(root: Path, split: str, classes: Sequence[str] | None = None) -> FolderSource:
    """List the images of ``root/split/<class>/``, at any depth below the class folder, sorted by path.

    A label is the position of the class in ``classes``, for example the classes of a checkpoint. By default, the
    classes are the folders of ``root/train`` or, if there is no such folder, of ``root/split``, in the order of
    ``in_order``. Links are followed. Hidden files and folders, whose names begin with a dot, are ignored. Logs one
    warning about the ignored files. Raises ``DataError`` for unknown and empty classes, and for entries that cannot be
    read or are neither files nor folders.
    """
    folder = root / split
    names = _class_names(folder)
    own = in_order(names, folder)
    ignored: list[str] = []
    _add_ignored([entry for entry in _entries(folder, ignored) if not entry.is_dir()], ignored)
    if classes is None:
        train = root / "train"
        classes = in_order(_class_names(train), train) if train.is_dir() else own
    paths = Paths()
    labels: list[int] = []
    for name, label in zip(names, labels_of(names, classes, folder), strict=True):
        images = _images_below(folder / name, ignored)
        paths.extend(images)
        labels += [label] * len(images)
    _warn_of_ignored(folder, ignored)
    return FolderSource(paths, labels, classes)


def _images_below(folder: Path, ignored: list[str]) -> list[str]:
    """List the images at any depth below ``folder``, in the order of their ``Path``, and add others to ``ignored``.

    Raises ``DataError`` if there is no image, for a loop of links, and for what is neither a file nor a folder.
    """
    before = len(ignored)
    images = sorted(_walk(str(folder), (), ignored), key=_parts)
    if not images:
        others = ignored[before:]
        beside = f", but {len(others)} other files, e.g. {printable(min(others))}" if others else ""
        raise DataError(
            f"{printable(folder)} has no image ({', '.join(IMG_EXTENSIONS)}){beside}; add images or remove the folder"
        )
    return images


def _parts(path: str) -> str:
    """Return text that compares as the parts of the path do: a folder's name before a longer name, a/b before a.b."""
    return os.path.normcase(path).replace(os.sep, "\0")


def _warn_of_ignored(folder: Path, ignored: list[str]) -> None:
    """Log a warning with the number of ignored files and folders, and an example."""
    if ignored:
        log.warning(
            "%s: %d files or folders are ignored, e.g. %s: their names begin with a dot or do not end in %s, or they "
            "are outside the class folders",
            printable(folder), len(ignored), printable(Path(min(ignored)).relative_to(folder)),
            ", ".join(IMG_EXTENSIONS),
        )  # fmt: skip


def find_images(places: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Return the paths of the files in ``places`` and of the images below its folders, and a message for each problem.

    Files are in the given order, and the images below a folder are sorted by path. A file may have any name. Below a
    folder, files with the extension of an image count, except hidden files, and a warning counts the others. This
    function opens no file.
    """
    paths: list[Path] = []
    problems = []
    for place in map(Path, places):
        try:
            if os.path.isdir(place):
                ignored: list[str] = []
                paths += map(Path, _images_below(place, ignored))
                _warn_of_ignored(place, ignored)
            elif os.path.isfile(place):
                paths.append(place)
            else:  # reading a pipe can block forever
                problems.append(f"{printable(place)}: no such file or folder, or a pipe, a socket or a device")
        except DataError as error:
            problems.append(str(error))
    return paths, problems


def _walk(folder: str, above: tuple[str, ...], ignored: list[str]) -> Iterator[str]:
    """Yield the images below a folder, and add other files to ``ignored``.

    above: the real paths of the folders that contain it.
    """
    here = os.path.realpath(folder)
    if here in above:
        raise DataError(f"{printable(folder)} is a link to a folder above it, an endless loop; remove it")
    for entry in _entries(folder, ignored):
        if entry.is_dir():
            yield from _walk(entry.path, (*above, here), ignored)
        elif _is_image(entry):
            yield entry.path
        else:
            _add_ignored([entry], ignored)


def _class_names(folder: Path) -> list[str]:
    """Return the names of the class folders, sorted as text, which is the order in which their images are listed."""
    names = sorted(entry.name for entry in _entries(folder, []) if entry.is_dir())
    if not names:
        raise DataError(f"{printable(folder)} has no class folders; images belong at {printable(folder)}/<class>/")
    return names


def _entries(folder: Path | str, ignored: list[str]) -> list[os.DirEntry[str]]:
    """Return the files and folders in ``folder`` that are not hidden, and the broken links with an image's extension.

    Reading such a link fails like reading a damaged image. Raises ``DataError`` for other broken links and for special
    files: a broken link may have been a folder, and ignoring it might change the labels of other classes. Adds hidden
    folders and hidden images to ``ignored``.
    """
    try:
        with os.scandir(folder) as scan:
            every = list(scan)
        entries = [entry for entry in every if not entry.name.startswith(".")]
        hidden = [entry for entry in every if entry.name.startswith(".")]
        _add_ignored([entry for entry in hidden if entry.is_dir() or _is_image(entry)], ignored)
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


def _add_ignored(entries: list[os.DirEntry[str]], ignored: list[str]) -> None:
    """Add the paths of ``entries`` to ``ignored``, except text files and the hidden files of macOS and Windows."""
    for entry in entries:
        if not entry.name.lower().endswith(NO_IMAGES) and not entry.name.startswith(_OF_SYSTEMS):
            ignored.append(entry.path)
