"""The image formats: the files in a folder that are read, the ignored files that are counted, and the decoders."""

from __future__ import annotations

import os

import pytest
import torchvision.datasets as tv
from PIL import EpsImagePlugin, Image
from sharded import command

from isonet import load_cfg
from isonet.data import build_loader
from isonet.data.decode import decode_image, decode_tensor
from isonet.data.faults import ImageError
from isonet.data.folders import find_images, image_folder
from isonet.data.formats import IMG_EXTENSIONS, PILLOW_FORMATS
from isonet.errors import DataError

READ = ["a.jpg", "b.JPG", "c.Jpeg", "d.jpe", "e.jfif", "f.gif", "g.avif", "h.webp", "i.png", "j.tif", "k.pbm", "l.pnm",
        "m.bmp", "n.JPEG", "folder.jpg/o.ppm"]  # fmt: skip
ENDINGS = [
    "a.heic",
    "b.svg",
    "c.eps",
    "d.npy",
    "e.mat",
    "f.jpg.part",
    "g.jpg ",
    "h.jpg.",
    "i",
    "j.jp2",
    "k.tga",
    "l.zip",
]
SILENT = ["._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "labels.txt", "a.json", "a.xml", ".gitignore"]


def fill(root, split, *names):
    for name in names:
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith(IMG_EXTENSIONS) and not os.path.basename(name).startswith("."):
            Image.new("RGB", (16, 16), (0, len(name), 9)).convert("1" if name.endswith(".pbm") else "RGB").save(path)
        else:
            path.write_bytes(b"x")


def test_the_endings_are_pillows_and_include_torchvisions():
    Image.init()
    named = Image.registered_extensions()
    assert {named[ending] for ending in IMG_EXTENSIONS} == {*PILLOW_FORMATS, "MPO"}  # MPO opens as JPEG
    assert {*tv.folder.IMG_EXTENSIONS} < {*IMG_EXTENSIONS}


@pytest.fixture
def mixed(tmp_path):
    for split in ("train", "val"):
        for place in ("cat", "dog"):
            fill(tmp_path / "pets", split, *(f"{place}/{name}" for name in (*READ, *ENDINGS, *SILENT)))
        fill(tmp_path / "pets", split, "loose.png", "data.csv", ".ipynb_checkpoints/a.png", "cat/.cache/a.png")
        fill(tmp_path / "pets", split, "dog/.hidden.jpg")
    return tmp_path / "pets"


def counted(message, folder):
    """Check the only warning about a split."""
    assert message.startswith(f"{folder}: ")
    assert f" {2 * len(ENDINGS) + 4} files" in message  # including 3 hidden files and one outside the class folders
    assert "e.g. .ipynb_checkpoints" in message


def test_every_image_is_read_and_the_other_files_are_counted_once(mixed, caplog, tmp_path):
    opts = ["DATASET.ROOT", str(tmp_path), "DATASET.NAME", "pets", "DATASET.NUM_CLASSES", 2, "DATASET.NUM_WORKERS", 0]
    for split in ("train", "val"):
        loader = build_loader(load_cfg(None, [*opts, "DATASET.IMAGE_SIZE", 16, "SOLVER.DROP_LAST", False]), split)
        assert sum(len(labels) for _, labels in loader) == 2 * len(READ)
        counted(*caplog.messages, mixed / split)
        caplog.clear()
    command("write", mixed)
    for message, split in zip(caplog.messages, ("train", "val"), strict=True):
        counted(message, mixed / split)
    caplog.clear()
    paths, problems = find_images([str(mixed / "val/cat")])
    assert [str(path.relative_to(mixed / "val/cat")) for path in paths] == sorted(READ)
    assert not problems
    (message,) = caplog.messages
    assert f" {len(ENDINGS) + 1} files" in message


def test_a_usual_folder_gives_no_warning_and_a_class_without_images_says_what_it_has(tmp_path, caplog):
    fill(tmp_path, "val", "n01440764/ILSVRC2012_val_00000293.JPEG", "n01440764/boxes.txt", "valprep.sh", *SILENT)
    assert len(image_folder(tmp_path, "val").paths) == 1
    assert not caplog.messages
    fill(tmp_path, "val", "n01443537/1.heic", "n01443537/2.heic")
    with pytest.raises(DataError, match=r"n01443537 has no image .* 2 other files, e.g. .*1.heic"):
        image_folder(tmp_path, "val")


@pytest.mark.parametrize("decode", [decode_image, decode_tensor])
def test_a_picture_in_postscript_is_unreadable_and_starts_no_program(tmp_path, monkeypatch, decode):
    """A replacement for Ghostscript creates a file. Without the list of formats, Pillow starts it."""
    program, mark, picture = tmp_path / "bin/gs", tmp_path / "mark", tmp_path / "photo.jpg"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow caches the path of Ghostscript
    Image.new("RGB", (8, 8)).save(picture, "EPS")
    with pytest.raises(ImageError, match="in none of the formats JPEG"):
        decode(picture.read_bytes(), picture)
    assert not mark.exists()
    with Image.open(picture) as image, pytest.raises(OSError, match="cannot identify"):  # the replacement draws nothing
        image.load()
    assert mark.exists()


@pytest.mark.parametrize("kind", ["JPEG2000", "ICO", "TGA", "PCX"])
def test_a_format_outside_the_list_is_unreadable_whatever_its_name(tmp_path, kind):
    path = tmp_path / "1.png"
    Image.new("RGB", (16, 16)).save(path, kind)
    with pytest.raises(ImageError, match="none of the formats"):
        decode_image(path.read_bytes(), path)
