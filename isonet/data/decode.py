"""Decodes the bytes of one image file to RGB pixels, or raises an error that describes the fault of the file.

The orientation in EXIF data is not applied, neither with Pillow's decoder nor with torchvision's. The published code
reads images with torchvision's ImageFolder, which does not apply it either, in training and in evaluation.
"""

import contextlib
import errno
import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from isonet.data.faults import ImageError
from isonet.data.formats import PILLOW_FORMATS
from isonet.errors import DataError, printable

MAX_ASPECT = 1000  # longer side / shorter side; this limits the size of a resized image

# Pillow refuses images of 179 million pixels or more (half a gigabyte as RGB), and warns from half of that number on.
# Images are converted to RGB, which has no transparency, so a warning about transparency is of no use
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)

_JPEG = ("JPEG", "MPO")
_JPEG_SIZES = {0xC0, 0xC1, 0xC2}  # frame headers, which contain the size: baseline, extended and progressive
_JPEG_SEGMENTS = {*_JPEG_SIZES, 0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}  # and tables, metadata and comments
_JPEG_SCAN = 0xDA  # the pixels follow
_SYSTEM_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_file(path: Path) -> bytes:
    """Return the bytes of an image file. Raises ``ImageError``, or ``DataError`` if the fault is not in the file."""
    with _explained(path):
        return path.read_bytes()


def decode_image(data: bytes | bytearray, path: Path | str) -> Image.Image:
    """Decode the bytes of the image file ``path`` to RGB. If the file contains several images, decode the first.

    Raises ``ImageError``, or ``DataError`` if the fault is not in the file.
    """
    with _explained(path), _open(data) as image:
        return to_rgb(image)


def size_in_header(data: bytes | bytearray, path: Path | str) -> tuple[int, int]:
    """Return width and height in the header of an image file. Raises the same errors as ``decode_image``."""
    with _explained(path), _open(data) as image:
        return image.size


def decode_tensor(data: bytes | bytearray, path: Path | str) -> Tensor:
    """Like ``decode_image``, but return uint8 (3, H, W), and decode JPEG with torchvision, whatever the file's name."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with _explained(path):
        if _for_torchvision(data):
            writable = data if isinstance(data, bytearray) else bytearray(data)
            with contextlib.suppress(RuntimeError):  # then Pillow decodes it, or raises an error with the reason
                return decode_jpeg(torch.frombuffer(writable, dtype=torch.uint8), ImageReadMode.RGB)
        with _open(data) as image:
            return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)


def _for_torchvision(data: bytes | bytearray) -> bool:
    """Whether the data are a JPEG file in grey or in colour. Refuse files that should not be decoded, like ``_open``.

    CMYK is left to Pillow, because it has several conventions.
    """
    if data[:2] != b"\xff\xd8":
        return False
    if _is_plain_jpeg(data):
        _check_end(data)
        return True
    with _open(data) as image:
        return image.format in _JPEG and image.mode in ("L", "RGB")


def _is_plain_jpeg(data: bytes | bytearray) -> bool:
    """Whether the header has only usual segments and a size that ``_open`` accepts: a quarter of Pillow's time."""
    at, sized = 2, False
    with contextlib.suppress(struct.error):  # the file ends in its header
        while True:
            sync, marker, length = struct.unpack_from(">BBH", data, at)
            if sync != 0xFF or marker not in _JPEG_SEGMENTS:
                return sized and (sync, marker) == (0xFF, _JPEG_SCAN)
            if marker in _JPEG_SIZES:
                bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
                usual = not sized and bits == 8 and channels in (1, 3)
                sized = usual and 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0)
                if not sized or max(width, height) > MAX_ASPECT * min(width, height):
                    return False
            at += 2 + length
    return False


def _open(data: bytes | bytearray) -> Image.Image:
    """Read the header of an image file, and refuse files that should not be decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"{len(data):,} bytes in none of the formats {', '.join(PILLOW_FORMATS)}") from None
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels are too thin to resize")
    if image.format in _JPEG:
        _check_end(data)
    return image


def _check_end(jpeg: bytes | bytearray) -> None:
    """Refuse a JPEG file whose end a crash during a write replaced by zeros. Decoders show them as grey or noise."""
    if jpeg[-2:] == b"\0\0" and jpeg.rfind(b"\xff\xd9") < jpeg.rfind(b"\xff\xda"):
        raise ValueError("it is truncated and filled up with zeros")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, 8 bits per channel. Of 16 bits, keep the upper 8, also in grey, which Pillow clips at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF's BitsPerSample; Pillow opens 12 bits as 16
        return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers of unknown scale")
    return image.convert("RGB")


@contextlib.contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    """Turn every exception into an ``ImageError``, or into a ``DataError`` if the fault is not in the image."""
    try:
        yield
    except Exception as error:  # Pillow raises many kinds for a damaged file
        reason = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _SYSTEM_LIMITS:
            raise DataError(
                f"{printable(path)}: a limit of the system is reached ({reason}); raise it (memory, ulimit -n), or use "
                "fewer DATASET.NUM_WORKERS or smaller batches"
            ) from None
        raise ImageError(path, f"cannot be read as an image ({reason})") from None
