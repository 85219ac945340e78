"""CIFAR-10 and CIFAR-100. A download replaces no existing file, and loading a batch executes no code from it.

A batch is a pickle of an array and a list of labels. Users may have their own batches in the same layout, such as
subsets and long-tailed versions. ``DATASET.CHECKSUM False`` accepts them.
"""

import contextlib
import logging
import os
import pickle
import shutil
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from isonet.data.sources import ArraySource
from isonet.errors import DataError, printable
from isonet.files.download import download_folder, fetch

log = logging.getLogger("isonet")

_LARGEST_ARCHIVE = 400_000_000  # bytes; each archive has about 170 million


def cifar(name: str, root: Path, split: str, download: bool, checksum: bool = True) -> ArraySource:
    """Load CIFAR10 or CIFAR100 from ``root``.

    download: whether to download the files that are missing. checksum: whether to refuse files that differ from the
    published ones. Raises ``DataError`` for such files, for missing files and for files that are not batches.
    """
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import check_integrity

    data = {"CIFAR10": CIFAR10, "CIFAR100": CIFAR100}[name]
    folder = root / data.base_folder
    batches = [folder / file for file, _ in (data.train_list if split == "train" else data.test_list)]
    meta = folder / data.meta["filename"]
    sums = {folder / file: md5 for file, md5 in (*data.train_list, *data.test_list, (meta.name, data.meta["md5"]))}
    try:
        others = [file for file, md5 in sums.items() if file.exists() and not check_integrity(file, md5)]
        if others and checksum:
            raise DataError(
                f"{printable(others[0])} is not the published file of {name} (its checksum differs): DATASET.CHECKSUM "
                "False uses it as it is; to replace it, move it away and set DATASET.DOWNLOAD True"
            )
        if download and not all(file.exists() for file in sums):
            _download(data, root, [*sums])
        for file in sums if checksum else (*batches, meta):
            if not file.exists():
                raise FileNotFoundError(f"there is no {file}")
    except (OSError, HTTPException) as error:  # no network, disk full, a damaged archive
        raise DataError(
            f"{name} is missing or damaged under {root} ({error}): set DATASET.DOWNLOAD True, or download "
            f"{data.url} and unpack {data.filename} so that {folder} exists"
        ) from None
    if others:
        log.info("%s: %d files are not the published ones, e.g. %s", name, len(others), printable(others[0]))
    classes = _classes(meta, data.meta["key"])
    pixels, labels = zip(*(_batch(file, len(classes)) for file in batches), strict=True)
    images = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArraySource(images, np.concatenate(labels).tolist(), classes)


def _download(data: Any, root: Path, files: list[Path]) -> None:
    """Download the archive unless ``root`` contains it, and unpack the missing files. Existing files are not replaced.

    If several processes call this function simultaneously, one downloads and the others wait. Raises ``OSError``.
    """
    from torchvision.datasets.utils import check_integrity, extract_archive

    archive = root / data.filename
    with download_folder(archive) as place:
        if all(file.exists() for file in files):  # another process has downloaded them
            return
        if not check_integrity(archive, data.tgz_md5):
            archive = place / data.filename
            fetch(data.url, archive, _LARGEST_ARCHIVE)
            if not check_integrity(archive, data.tgz_md5):
                raise OSError(f"{data.url} is not the published archive (its checksum differs)")
        extract_archive(archive, place)
        (root / data.base_folder).mkdir(exist_ok=True)
        for file in [*(place / data.base_folder).iterdir(), *place.glob(data.filename)]:
            target = root / file.relative_to(place)
            if not os.path.lexists(target):
                shutil.move(file, target)


def _batch(file: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels, uint8 (N, 3072), and the labels, int (N,), of a batch. Raises ``DataError``."""
    with _explained(file):
        content = _load(file)
        pixels = np.asarray(content["data"])
        labels = np.asarray(content["labels" if "labels" in content else "fine_labels"])
        if pixels.dtype != np.uint8 or pixels.shape != (*labels.shape, 3072):
            raise ValueError(f"data is {pixels.dtype} {pixels.shape}, not uint8 {(*labels.shape, 3072)}")
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(f"labels are not whole numbers from 0 to {num_classes - 1}")
        return pixels, labels


def _classes(file: Path, key: str) -> list[str]:
    """Return the names of the classes from the metadata file in the folder of the batches. Raises ``DataError``."""
    with _explained(file):
        return [_text(name) for name in np.asarray(_load(file)[key]).tolist()]


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged pickle raises many kinds of exceptions
        reason = printable(f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}")
        raise DataError(f"{printable(file)}: not in the layout of CIFAR's files ({reason:.200})") from None


def _load(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {_text(key): value for key, value in _Unpickler(stream, encoding="latin1").load().items()}


def _text(name: Any) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


_FUNCTIONS = ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
_NEEDED = {  # for arrays, NumPy scalars and text of Python 2, in files of all versions of NumPy
    *("numpy.dtype", "numpy.ndarray", "_codecs.encode"),
    *(f"numpy.{core}.{function}" for core in ("core", "_core") for function in _FUNCTIONS),
}


class _Unpickler(pickle.Unpickler):
    """Builds arrays, numbers, text and their containers. It imports and calls nothing else that a file names."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _NEEDED:
            raise pickle.UnpicklingError(f"it needs {module}.{name}")
        return super().find_class(module, name)
