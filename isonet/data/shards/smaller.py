"""Images stored smaller than their files, as JPEG."""

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from isonet.data.decode import decode_image

# Published validation resizes to this shorter side, bilinearly. It does not change an image that has this size, which
# must therefore be resized bilinearly. A larger image is resized twice: only a sharp filter adds no blur of its own.
_VALIDATION = 256

_LONGEST_SIDE = 65_500  # of the JPEG files that libjpeg writes


@dataclass(frozen=True)
class Smaller:
    """How to store images: as JPEG of ``quality``, with a shorter side of at most ``short_side`` pixels."""

    short_side: int
    quality: int

    def __str__(self) -> str:
        return f"a short side of at most {self.short_side} pixels, JPEG quality {self.quality}"

    def encode(self, data: bytes, path: Path) -> tuple[bytes, str]:
        """Return a smaller file of the same image, and its extension. A file is not changed if its image is small
        enough, or if its longer side would not fit into a JPEG file.

        Raises ``ImageError`` if the image cannot be read, and ``DataError`` if the fault is not in the file.
        """
        image = decode_image(data, path)
        shorter = min(image.size)
        width, height = (round(self.short_side * side / shorter) for side in image.size)
        if shorter <= self.short_side or max(width, height) > _LONGEST_SIDE:
            return data, path.suffix[1:].lower()
        file = io.BytesIO()
        final = self.short_side <= _VALIDATION
        smaller = image.resize((width, height), Image.Resampling.BILINEAR if final else Image.Resampling.LANCZOS)
        smaller.save(file, "JPEG", quality=self.quality, optimize=True)  # fewer bytes to decode for the same pixels
        return file.getvalue(), "jpg"
