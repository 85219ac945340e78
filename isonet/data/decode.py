"""Decodes the bytes of one image file to RGB pixels, or raises an error that says what is wrong with it.

Pixels are as stored: the orientation in EXIF data is not applied, neither with Pillow's decoder nor with torchvision's.
The published code reads images with torchvision's ImageFolder, which does not apply it either, in training and in
evaluation alike.
"""

from __future__ import annotations

import contextlib
import errno
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from isonet.data.faults import ImageError
from isonet.errors import DataError, printable

MAX_PIXELS = 178_956_970  # Pillow's own limit: half a gigabyte as RGB
MAX_ASPECT = 1000  # of the longer side to the shorter one, which limits the size of a resized image

# Images below MAX_PIXELS need no warning, and RGB has no transparency
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)

_JPEG_START = b"\xff\xd8"
_NO_FAULT_OF_THE_IMAGE = {errno.EMFILE: "ulimit -n", errno.ENFILE: "fs.file-max", errno.ENOMEM: "memory"}


def read_file(path: Path) -> bytes:
    """The bytes of an image file. Raises ``ImageError``, or ``DataError`` if the file is not to blame."""
    with _explained(path):
        return path.read_bytes()


def decode_image(data: bytes, path: Path) -> Image.Image:
    """Decode the bytes of the image file ``path`` to RGB, the first image if it holds several.

    Raises ``ImageError``, or ``DataError`` if the file is not to blame.
    """
    with _explained(path):
        return _decode(data, path)


def decode_tensor(data: bytes, path: Path) -> Tensor:
    """Like ``decode_image``, as uint8 (3, H, W), JPEG decoded by torchvision, whatever the file's name."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with _explained(path):
        if (frame := _jpeg_frame(data)) is not None:
            width, height, channels = frame
            _check_size(path, width, height)
            _check_end(data)
            if channels in (1, 3):  # not CMYK, which has several conventions
                with contextlib.suppress(RuntimeError):  # Pillow decodes it, or says what is wrong
                    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        return torch.from_numpy(np.array(_decode(data, path))).permute(2, 0, 1)


def _decode(data: bytes, path: Path) -> Image.Image:
    if not data:
        raise UnidentifiedImageError("it is empty, 0 bytes")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise UnidentifiedImageError("of no kind that Pillow knows") from None
    with image:
        _check_size(path, *image.size)
        if image.format in ("JPEG", "MPO"):
            _check_end(data)
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB of 8 bits a channel; of 16 bits keep the upper 8, for grey as well, which Pillow clips at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF's BitsPerSample: 12 is read as 16
        return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers of unknown scale")
    return image.convert("RGB")


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(path, f"{width} x {height} = {width * height:,} pixels, above the limit of {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(path, f"{width} x {height} pixels are too thin to resize")


def _check_end(data: bytes) -> None:
    """Refuse a JPEG file that ends in zeros before its end-of-image marker, as a crash during a write leaves it.

    The decoders refuse a truncated file, but accept zeros as data and would show grey or noise.
    """
    if data[-2:] == b"\0\0" and data[:2] == _JPEG_START and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError("it is truncated and filled up with zeros")


def _jpeg_frame(data: bytes) -> tuple[int, int, int] | None:
    """Width, height and channels from the header of a JPEG file; None for any other file."""
    if data[:2] != _JPEG_START:
        return None
    at = 2  # position of a marker: two bytes, followed by the length of its segment and the segment
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame; those three are tables
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return (width, height, data[at + 9]) if width and height else None
        if marker == 0xFF:  # padding
            at += 1
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn every exception into an ``ImageError``, or into a ``DataError`` if the image is not to blame."""
    try:
        yield
    except DataError:
        raise
    except MemoryError:
        raise DataError(
            f"{printable(path)}: no memory is left to read it; use fewer DATASET.NUM_WORKERS or smaller batches"
        ) from None
    except Exception as error:  # Pillow raises many kinds for a damaged file
        number = error.errno if isinstance(error, OSError) else None
        if number in _NO_FAULT_OF_THE_IMAGE:
            limit = _NO_FAULT_OF_THE_IMAGE[number]
            raise DataError(f"{printable(path)}: cannot be read ({error}); raise the limit: {limit}") from None
        raise ImageError(path, _reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist any more, or is a broken link"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    if isinstance(error, UnidentifiedImageError):
        return f"cannot be read as an image ({error})"
    return f"cannot be read as an image ({type(error).__name__}: {error})"
