"""Shards with smaller images: their pixels, their index, their warnings, and the logits that they change."""

from __future__ import annotations

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from sharded import command, epoch, loader

from benchmarks import smaller as benchmark
from conftest import SHARED_DATA
from isonet.data.decode import decode_image
from isonet.data.folders import image_folder
from isonet.data.shards.index import read_index
from isonet.data.shards.smaller import Smaller
from isonet.data.shards.source import open_shards
from isonet.errors import DataError, UserError

SIDE = 48


def smooth(width, height):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 255 // height, x * 255 // width, (x + y) * 255 // (width + height)], -1).astype(np.uint8)


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees, which the loader ignores
    return exif


PICTURES = {  # image, options of its file, and its size in the shards
    "wide.jpg": (Image.fromarray(smooth(130, 96)), {"quality": 95}, (65, 48)),
    "tall.png": (Image.fromarray(smooth(96, 131)), {}, (48, 66)),
    "grey.jpg": (Image.fromarray(smooth(96, 96)).convert("L"), {}, (48, 48)),
    "cmyk.jpg": (Image.fromarray(smooth(96, 96)).convert("CMYK"), {"quality": 95}, (48, 48)),
    "deep.png": (Image.fromarray(smooth(96, 96)[..., 0].astype(np.uint16) * 256), {}, (48, 48)),
    "rotated.jpg": (Image.fromarray(smooth(144, 96)), {"exif": rotated()}, (72, 48)),
    "exact.png": (Image.fromarray(smooth(48, 90)), {}, (48, 90)),  # copied, like the next one
    "small.webp": (Image.fromarray(smooth(30, 20)), {}, (30, 20)),
}
NAMES = sorted(PICTURES)
COPIED = ("exact.png", "small.webp", "zero.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine files, one of which is cut, and their shards."""
    place = tmp_path_factory.mktemp("data") / "mine"
    for split in ("train", "val"):
        (place / split / "a").mkdir(parents=True)
        for name, (image, options, _) in PICTURES.items():
            image.save(place / split / "a" / name, **options)
        whole = (place / split / "a/wide.jpg").read_bytes()
        (place / split / "a/zero.jpg").write_bytes(whole[: len(whole) // 2])
    command("write", place, "--short-side", SIDE, "--images-per-shard", 4)
    return place


def stored(folder):
    """Return the bytes of each image of the validation shards, in the order of its files, and its extension."""
    source = open_shards(folder / "shards/val")
    return [
        (bytes(data), str(name).rpartition(".")[2]) for data, name in map(source.encoded, range(len(source.labels)))
    ]


def test_images_are_resized_once_and_small_and_unreadable_ones_are_copied(folder):
    found = dict(zip([*NAMES, "zero.jpg"], stored(folder), strict=True))
    for name, (data, extension) in found.items():
        file = folder / "val/a" / name
        if name in COPIED:
            assert (data, extension) == (file.read_bytes(), file.suffix[1:])
            continue
        whole = decode_image(file.read_bytes(), file)
        expected = io.BytesIO()
        whole.resize(PICTURES[name][2], Image.Resampling.BILINEAR).save(expected, "JPEG", quality=90)
        with Image.open(io.BytesIO(data)) as image, Image.open(expected) as other:
            assert (extension, image.format, image.size) == ("jpg", "JPEG", PICTURES[name][2])
            assert np.array_equal(image, other)
            exact = np.asarray(whole.resize(image.size, Image.Resampling.BOX)).astype(int)
            assert np.abs(np.asarray(image).astype(int) - exact).mean() < 4


def test_an_image_that_is_longer_than_a_jpeg_file_can_be_is_copied(tmp_path):
    """Resized to 66 pixels it would have 65,901, and JPEG files have at most 65,500 on a side."""
    panorama = tmp_path / "panorama.png"
    Image.new("1", (66_900, 67)).save(panorama)
    assert Smaller(66, 90).encode(panorama.read_bytes(), panorama) == (panorama.read_bytes(), "png")
    data, extension = Smaller(65, 90).encode(panorama.read_bytes(), panorama)
    assert (Image.open(io.BytesIO(data)).size, extension) == ((64_903, 65), "jpg")


def test_the_index_has_the_settings_and_the_sizes_and_verify_checks_them(folder, tmp_path, capsys):
    head = json.loads((folder / "shards/val/index.json").read_text())
    assert (head["short_side"], head["quality"], head["classes"]) == (SIDE, 90, ["a"])
    index = read_index(folder / "shards/val")
    sizes = list(zip(index.rows["width"].tolist(), index.rows["height"].tolist(), strict=True))
    assert sizes[:-1] == [PICTURES[name][2] for name in NAMES]
    command("verify", folder / "shards")
    assert "9 images of 1 classes in 3 shards" in capsys.readouterr().out
    copy = shutil.copytree(folder / "shards/val", tmp_path / "val")
    command("index", copy)  # keeps the settings
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in (folder / "shards/val").iterdir()
    }
    rows = bytearray((copy / "index.bin").read_bytes())
    rows[16] ^= 1  # the width of the first image
    (copy / "index.bin").write_bytes(rows)
    with pytest.raises(UserError, match="2 files are damaged"):  # the shard that does not match, and the index
        command("verify", copy)


def test_other_options_are_refused_until_overwrite(folder, tmp_path):
    write = ["write", folder, "--split", "val", "--output", tmp_path]
    command(*write, "--short-side", SIDE)
    before = (tmp_path / "val/000000.tar").read_bytes()
    for options in ([], ["--short-side", 47], ["--short-side", SIDE, "--quality", 80]):
        with pytest.raises(DataError, match="--overwrite"):
            command(*write, *options)
    assert (tmp_path / "val/000000.tar").read_bytes() == before
    command(*write, "--overwrite")  # copies of the files, and an index without the settings
    assert not {"short_side", "quality"} & set(json.loads((tmp_path / "val/index.json").read_text()))
    assert [data for data, _ in stored(folder)] != [
        bytes(open_shards(tmp_path / "val").encoded(i)[0]) for i in range(9)
    ]


def test_an_unreadable_image_is_named_when_it_is_written_and_on_error_decides_about_it(folder, tmp_path, caplog):
    command("write", folder, "--split", "val", "--output", tmp_path, "--short-side", SIDE)
    (message,) = caplog.messages
    assert str(folder / "val/a/zero.jpg") in message
    with pytest.raises(DataError, match=r"zero\.jpg"):
        epoch(loader(folder, "val", **{"DATASET.IMAGE_SIZE": 40}))
    batches = loader(folder, "val", **{"DATASET.IMAGE_SIZE": 40, "DATASET.ON_ERROR": "skip"})
    assert sum(len(labels) for _, labels, _ in epoch(batches)) == 8


@pytest.mark.parametrize(
    ("split", "size", "needed"),
    [("train", 48, 0), ("train", 80, 80), ("val", 64, 64), ("val", 42, 0), ("val", 80, 91)],
)  # up to 64 pixels, validation resizes to the size of the image itself
def test_a_warning_says_once_how_many_pixels_the_preprocessing_needs(folder, caplog, split, size, needed):
    loader(folder, split, **{"DATASET.IMAGE_SIZE": size, "DATASET.ON_ERROR": "skip"})
    messages = [message for message in caplog.messages if "short side" in message]
    assert len(messages) == bool(needed)
    assert all(f"{SIDE} pixels" in message and f"--short-side {needed} " in message for message in messages)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the photographs in ../shared/data are not here")
def test_logits_differ_from_the_folders_hardly_more_than_by_jpeg_alone(tmp_path):
    """The bounds are twice what encoding the photographs again in their full size changes."""
    with tarfile.open(SHARED_DATA / "imagenet-sample-val.tar") as archive:
        members = [member for member in archive.getmembers() if member.isfile()][:6]
        archive.extractall(tmp_path, members, filter="data")
    folder = tmp_path / "ILSVRC2012"
    source = image_folder(folder, "val")
    torch.manual_seed(0)
    network = benchmark.NETWORKS["IN1k-ISO18"]().eval()
    whole = benchmark.logits(network, source, 6)
    encoded, _ = benchmark.compare(whole, benchmark.logits(network, benchmark.Encoded(source), 6))
    for side in benchmark.GOALS:
        shards = benchmark.write(folder, side, tmp_path)
        distance, _ = benchmark.compare(whole, benchmark.logits(network, shards, 6))
        assert 0 < distance < 2 * encoded < 0.1
        assert 0.5 < benchmark.crop_difference(source, shards) < 5
