"""Pictures to damage, loaders that read them, and the checks of a refusal."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import torch
from PIL import Image

from isonet import load_cfg
from isonet.data import build_loader
from isonet.data.decode import decode_image, decode_tensor, read_file
from isonet.errors import DataError, WorkerError


def read_image(path):
    return decode_image(read_file(path), path)


READERS = {  # uint8 (3, H, W)
    "pil": lambda path: torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1),
    "torch": lambda path: decode_tensor(read_file(path), path),
}
WAYS = {  # image size, workers, decoder
    "memory": (32, 0, "pil"), "alone": (80, 0, "pil"), "alone torch": (80, 0, "torch"),
    "workers": (80, 2, "pil"), "workers torch": (80, 2, "torch"),
}  # fmt: skip


def picture(width=96, height=80):
    """Return a smooth picture, which JPEG hardly changes: uint8 (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 255 // height, x * 255 // width, (x + y) * 255 // (width + height)], -1).astype(np.uint8)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, bits, colour, rows):
    """Return a hand-written PNG file: Pillow writes neither 16-bit colours nor a picture without pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def make_images(tmp_path):
    """Write nine slightly different pictures in two classes. Tests damage the third file of the first class."""
    for i in range(9):
        path = tmp_path / "set/train" / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(np.roll(picture(), 9 * i, axis=1), quality=95))
    return tmp_path / "set"


def loader(root, way="memory", on_error="stop", batch=4, split="train", **more):
    size, num_workers, decoder = WAYS[way]
    opts = {"DATASET.ROOT": str(root.parent), "DATASET.NAME": root.name, "DATASET.NUM_CLASSES": 2,
            "DATASET.IMAGE_SIZE": size, "DATASET.NUM_WORKERS": num_workers, "RUNTIME.DECODER": decoder,
            "DATASET.ON_ERROR": on_error, "SOLVER.TRAIN_BATCH_SIZE": batch, "SOLVER.DROP_LAST": False,
            **more}  # fmt: skip
    return build_loader(load_cfg(None, [item for pair in opts.items() for item in pair]), split)


def epoch(batches, number=1, skip=0):
    """Return the batches of an epoch, with ``taken`` after each."""
    batches.set_epoch(number, skip)
    return [(x, y, batches.taken) for x, y in batches]


def refused(tally, *words):
    """Return a context manager whose block must be refused with one line that contains ``words``."""

    class Refusal:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, _):
            assert kind is not None, f"not refused: {words}"
            if not issubclass(kind, DataError | WorkerError):
                return False
            self.message = str(error)
            assert self.message.isprintable(), self.message
            for word in words:
                assert str(word) in self.message, (word, self.message)
            tally("refused")
            return True

    return Refusal()
