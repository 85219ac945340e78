"""A folder of pictures, its shards, tar files like those of other tools, and loaders for all of them."""

from __future__ import annotations

import io
import tarfile

import torch
from PIL import Image

from isonet import load_cfg
from isonet.data import build_loader
from isonet.data.build import build_source
from isonet.shares import Share
from isonet.tools import shards

PER_SHARD = 4


def command(*args):
    shards.main(shards.parse_args([str(arg) for arg in args]))


def make_folder(root):
    """Write 23 training and 10 validation pictures of 80 x 60 pixels in three classes, and shards of 4 images."""
    pixels = torch.randint(0, 256, (33, 60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for i, image in enumerate(pixels):
        place = root / ("train" if i < 23 else "val") / f"class {i % 3}" / "deep"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(place / f"{i}.v2.{('jpg', 'JPEG', 'png')[i % 3]}")
    command("write", root, "--images-per-shard", PER_SHARD)
    return root


def loader(folder, split="train", share=None, classes=None, **more):
    opts = {"DATASET.ROOT": str(folder.parent), "DATASET.NAME": folder.name, "DATASET.NUM_CLASSES": 3,
            "DATASET.IMAGE_SIZE": 80, "DATASET.NUM_WORKERS": 0, "SOLVER.TRAIN_BATCH_SIZE": 3,
            "SOLVER.TEST_BATCH_SIZE": 3, "DATASET.SHUFFLE_BUFFER": 5, "RUNTIME.INPUT": "shards",
            "SOLVER.DROP_LAST": False, **more}  # fmt: skip
    cfg = load_cfg(None, [item for pair in opts.items() for item in pair])
    return build_loader(cfg, split, share=share or Share(), source=build_source(cfg, split, classes))


def epoch(batches, number=1, skip=0):
    """Return the batches of an epoch, with ``taken`` after each."""
    batches.set_epoch(number, skip)
    return [(x, y, batches.taken) for x, y in batches]


def write_tar(path, members, **options):
    """Write a tar file with ``members``, each (name, bytes) or a ``TarInfo``, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                name, data = member
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def png(value):
    """Return a PNG file whose pixels are all ``value``."""
    data = io.BytesIO()
    Image.new("RGB", (80, 80), (value, value, value)).save(data, "PNG")
    return data.getvalue()
