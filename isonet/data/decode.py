"""One image file to RGB pixels, or an error that says what is wrong with it.

Pixels are as stored: the orientation that EXIF data may ask for is not applied, neither by Pillow's
decoder nor by torchvision's. The published code read images with torchvision's ImageFolder, which does
not apply it either, in training and in evaluation alike.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from isonet.data.faults import ImageError
from isonet.errors import DataError, printable

MAX_PIXELS = 178_956_970  # Pillow's own limit: half a gigabyte as RGB
MAX_ASPECT = 1000  # of the longer side to the shorter, which limits the size of a resized image

# Below the limit there is nothing to warn of. The other one is of transparency, which RGB has not
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)

_JPEG_START = b"\xff\xd8"
_JPEG_SUFFIXES = (".jpg", ".jpeg")
_NO_FAULT_OF_THE_IMAGE = {errno.EMFILE: "ulimit -n", errno.ENFILE: "fs.file-max", errno.ENOMEM: "memory"}


def read_image(path: Path) -> Image.Image:
    """The image of a file as RGB, the first where it holds several."""
    with _explained(path), path.open("rb") as file:
        return _decode(file, path)


def decode_image(data: bytes, name: Path) -> Image.Image:
    """The image that the bytes of a file hold, as RGB. ``name`` is for messages and tells what kind it may be."""
    with _explained(name):
        return _decode(io.BytesIO(data), name)


def read_tensor(path: Path) -> Tensor:
    """The image of a file as uint8 (3, H, W), JPEG decoded by torchvision."""
    if path.suffix.lower() not in _JPEG_SUFFIXES:
        return _as_tensor(read_image(path))
    with _explained(path):
        # Not torchvision's read_file, which maps the file into memory and takes no names that are not UTF-8
        return _decode_tensor(np.fromfile(path, dtype=np.uint8), path)


def decode_tensor(data: bytes, name: Path) -> Tensor:
    """The image that the bytes of a file hold, as uint8 (3, H, W), JPEG decoded by torchvision."""
    with _explained(name):
        if name.suffix.lower() not in _JPEG_SUFFIXES:
            return _as_tensor(_decode(io.BytesIO(data), name))
        return _decode_tensor(np.frombuffer(bytearray(data), dtype=np.uint8), name)  # torch wants them writable


def _decode(file: BinaryIO, name: Path) -> Image.Image:
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        empty = file.seek(0, os.SEEK_END) == 0
        raise UnidentifiedImageError("it is empty, 0 bytes" if empty else "of no kind that Pillow knows") from None
    with image:
        _check_size(name, *image.size)
        if image.format in ("JPEG", "MPO"):
            file.seek(-2, os.SEEK_END)
            if file.read() == b"\0\0":
                file.seek(0)
                _check_end(file.read())
        return _rgb(image)


def _decode_tensor(data: np.ndarray, name: Path) -> Tensor:
    if data[-2:].tobytes() == b"\0\0":
        _check_end(data.tobytes())
    if (frame := _jpeg_frame(data.data)) is not None:
        width, height, channels = frame
        _check_size(name, width, height)
        if channels in (1, 3):  # else CMYK, of which there are several conventions
            with contextlib.suppress(RuntimeError):  # Pillow knows, or says what is wrong
                return decode_jpeg(torch.from_numpy(data), ImageReadMode.RGB)
    return _as_tensor(_decode(io.BytesIO(data.tobytes()), name))


def _as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    """8 bits a channel. Of 16 bits the upper 8, as Pillow reads RGB of 16 bits; grey it would clip at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF's BitsPerSample: 12 is read as 16
        return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are numbers of 32 bits, of which nobody knows which is white")
    return image.convert("RGB")


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(path, f"{width} x {height} = {width * height:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(path, f"{width} x {height} pixels are too thin a picture to resize")


def _check_end(data: bytes) -> None:
    """Refuse a JPEG file without an end of image after its last scan, of which a crash left the rest unwritten.

    The decoders refuse one that is cut, but to them many zeros are as good as data: they would show grey or noise.
    """
    if data[:2] == _JPEG_START and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError("it breaks off, and zeros follow")


def _too_large(path: Path, size: str) -> ImageError:
    return ImageError(path, f"{size} pixels, more than the {MAX_PIXELS:,} that are read")


def _jpeg_frame(data: memoryview) -> tuple[int, int, int] | None:
    """Width, height and channels from the header of a JPEG file; None where this is none."""
    if bytes(data[:2]) != _JPEG_START:
        return None
    at = 2  # of a marker, two bytes, after which there are the length of its segment and the segment
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame; these are tables
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return (width, height, data[at + 9]) if width and height else None
        if marker == 0xFF:  # padding
            at += 1
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Whatever goes wrong becomes an ``ImageError``, or a ``DataError`` where the image is not to blame."""
    try:
        yield
    except DataError:
        raise
    except MemoryError:
        raise DataError(
            f"{printable(path)}: no memory is left to read it; use fewer DATASET.NUM_WORKERS or smaller batches"
        ) from None
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise _too_large(path, f"{int(count.group()):,}" if count else "too many") from None
    except Exception as error:  # Pillow raises many kinds for a damaged file
        number = error.errno if isinstance(error, OSError) else None
        if number in _NO_FAULT_OF_THE_IMAGE:
            limit = _NO_FAULT_OF_THE_IMAGE[number]
            raise DataError(f"{printable(path)}: cannot be read ({error}); raise the limit: {limit}") from None
        raise ImageError(path, _reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "is not there any more, or is a link to nothing"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    if isinstance(error, UnidentifiedImageError):
        return f"cannot be read as an image ({error})"
    return f"cannot be read as an image ({type(error).__name__}: {error})"
