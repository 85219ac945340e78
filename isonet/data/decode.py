"""Decodes the bytes of one image file to RGB pixels, or raises an error that describes the fault of the file.

The orientation in EXIF data is not applied, neither with Pillow's decoder nor with torchvision's. The published code
reads images with torchvision's ImageFolder, which does not apply it either, in training and in evaluation.
"""

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
from isonet.data.formats import PILLOW_FORMATS
from isonet.errors import DataError, printable

MAX_ASPECT = 1000  # longer side / shorter side; this limits the size of a resized image

# Pillow refuses images of 179 million pixels or more (half a gigabyte as RGB), and warns from half of that number on.
# Images are converted to RGB, which has no transparency, so a warning about transparency is of no use
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)

_JPEG = ("JPEG", "MPO")
_SYSTEM_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_file(path: Path) -> bytes:
    """Return the bytes of an image file. Raises ``ImageError``, or ``DataError`` if the fault is not in the file."""
    with _explained(path):
        return path.read_bytes()


def decode_image(data: bytes, path: Path) -> Image.Image:
    """Decode the bytes of the image file ``path`` to RGB. If the file contains several images, decode the first.

    Raises ``ImageError``, or ``DataError`` if the fault is not in the file.
    """
    with _explained(path), _open(data) as image:
        return to_rgb(image)


def decode_tensor(data: bytes, path: Path) -> Tensor:
    """Like ``decode_image``, but return uint8 (3, H, W), and decode JPEG with torchvision, whatever the file's name."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with _explained(path), _open(data) as image:
        if image.format in _JPEG and image.mode in ("L", "RGB"):  # CMYK is left to Pillow: it has several conventions
            with contextlib.suppress(RuntimeError):  # then Pillow decodes it, or raises an error with the reason
                return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)


def _open(data: bytes) -> Image.Image:
    """Read the header of an image file, and refuse files that should not be decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"{len(data):,} bytes in none of the formats {', '.join(PILLOW_FORMATS)}") from None
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels are too thin to resize")
    # A crash during a write can leave zeros in place of the end of a JPEG file. Decoders show them as grey or noise
    if image.format in _JPEG and data[-2:] == b"\0\0" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError("it is truncated and filled up with zeros")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, 8 bits per channel. Of 16 bits, keep the upper 8, also in grey, which Pillow clips at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF's BitsPerSample; Pillow opens 12 bits as 16
        return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers of unknown scale")
    return image.convert("RGB")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
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
