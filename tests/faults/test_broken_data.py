"""Damaged images and folders, and files that disappear: read correctly, replaced, skipped, or refused by name."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import pickle
import shutil
import socket
import struct
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image

from conftest import SHARED_DATA
from isonet import build_model, load_cfg
from isonet.data import decode
from isonet.data.faults import ImageError, Unreadable
from isonet.data.folders import image_folder
from isonet.errors import DataError, printable
from isonet.training import evaluate
from pictures import (
    READERS,
    WAYS,
    encoded,
    epoch,
    loader,
    make_images,
    picture,
    png,
    read_image,
    refused,
)


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path)


@pytest.fixture
def low_limits(monkeypatch):
    """Set limits that small pictures exceed."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)  # Pillow refuses twice this number
    monkeypatch.setattr(decode, "MAX_ASPECT", 10)


# Files


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_a_cut_jpeg_is_refused_wherever_it_is_cut(tmp_path, tally, torture, reader, options):
    whole, path = encoded(picture(), quality=90, **options), tmp_path / "a.jpg"
    at = range(len(whole)) if torture else [0, 1, 2, 3, 20, 200, 650, *range(700, len(whole), 400), len(whole) - 2]
    for length in {*at, len(whole) - 1}:
        for tail in (b"", bytes(300)):  # a file system may pad an incomplete file with zeros
            path.write_bytes(whole[:length] + tail)
            with refused(tally, path, "DATASET.ON_ERROR skip", "0 bytes" if path.stat().st_size == 0 else "read"):
                READERS[reader](path)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "AVIF"])
def test_other_formats_are_refused_if_cut_or_keep_every_pixel(tmp_path, tally, torture, kind):
    whole, path = encoded(picture(), kind), tmp_path / f"a.{kind.lower()}"
    path.write_bytes(whole)
    expected = np.array(read_image(path))
    for length in range(0, len(whole), max(1, len(whole) // (400 if torture else 25))):
        path.write_bytes(whole[:length])
        try:
            pixels = np.array(read_image(path))
        except ImageError:
            tally("refused")
        else:
            assert np.array_equal(pixels, expected)
            tally("survived")


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the photographs in ../shared/data are not here")
def test_a_cut_photograph_is_refused(tmp_path, tally, torture):
    with tarfile.open(SHARED_DATA / "imagenet-sample-val.tar") as archive:
        members = [m for m in archive.getmembers() if m.isfile()][: 20 if torture else 3]
        files = [archive.extractfile(m).read() for m in members]
    for i, whole in enumerate(files):
        path = tmp_path / f"{i}.JPEG"
        for part in (0.1, 0.5, 0.9, 0.999):
            path.write_bytes(whole[: int(part * len(whole))])
            for read in READERS.values():
                with refused(tally, path):
                    read(path)


def damage_empty(path):
    path.write_bytes(b"")
    return "0 bytes"


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-300])
    return "cannot be read as an image"


def damage_web_page(path):
    path.write_bytes(b"<html>404 Not Found</html>")
    return "formats"


def damage_link_to_nothing(path):
    path.unlink()
    path.symlink_to("gone.jpg")
    return "No such file"


def damage_large_png(path):
    path.write_bytes(encoded(picture(101, 100), "PNG"))
    return "10100 pixels"


def damage_large_jpeg(path):
    path.write_bytes(encoded(picture(101, 100)))
    return "10100 pixels"


def damage_float(path):
    path.write_bytes(encoded(np.ones((9, 9), np.float32), "TIFF"))
    return "32-bit"


def damage_integers(path):
    path.write_bytes(encoded(np.ones((9, 9), np.int32), "TIFF"))
    return "32-bit"


def damage_thin(path):
    path.write_bytes(encoded(Image.new("RGB", (1, 11)), "PNG"))
    return "1 x 11 pixels"


def damage_no_size(path):
    path.write_bytes(png(0, 0, 8, 2, b""))
    return "cannot be read as an image"


DAMAGES = [damage_empty, damage_cut, damage_web_page, damage_link_to_nothing, damage_large_png, damage_large_jpeg,
           damage_float, damage_integers, damage_thin, damage_no_size]  # fmt: skip


def order(batches, number=1):
    """Return the numbers of an epoch's images, in order."""
    batches.set_epoch(number)
    return batches.batches.order().tolist()


BAD = "train/class0/4.jpg"  # number 2 of the images in sorted order


# Workers read with the same code: one damage found before decoding and one found in it show that errors reach the run
CASES = [(damage, way) for damage in DAMAGES for way in WAYS
         if "workers" not in way or damage in (damage_cut, damage_large_jpeg)]  # fmt: skip


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize(("damage", "way"), CASES)
def test_a_damaged_image_stops_a_run_or_is_replaced_by_the_next_one(images, tally, caplog, damage, way):
    """The replacement has its own label, and the crop and flip of the damaged image. Other images do not change."""
    whole = [epoch(loader(images, way), number) for number in (1, 2)]
    path = images / BAD
    shutil.move(path, images.parent / "good.jpg")
    shutil.copy(images / "train/class0/6.jpg", path)
    replaced = [epoch(loader(images, way), number) for number in (1, 2)]
    shutil.move(images.parent / "good.jpg", path)
    reason = damage(path)
    with refused(tally, path, reason, "repair or remove it", "DATASET.ON_ERROR skip"):
        epoch(loader(images, way))
    batches = loader(images, way, "skip")
    for number in (1, 2):
        found = epoch(batches, number)
        assert len(found) == len(whole[number - 1]) == 3
        for got, expected, before in zip(found, replaced[number - 1], whole[number - 1], strict=True):
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])
            assert got[2] == before[2]
        assert (
            sum((a != b).flatten(1).any(1).sum() for (a, *_), (b, *_) in zip(found, whole[number - 1], strict=True))
            == 1
        )
    assert list(batches.skipped) == [str(path)]
    assert reason in batches.skipped[str(path)]
    assert len([m for m in caplog.messages if str(path) in m]) == 1  # logged once
    tally("survived")


@pytest.mark.parametrize("way", ["memory", "alone", "workers"])
def test_the_replacement_of_the_last_image_of_a_class_has_its_own_label(images, tally, way):
    damage_empty(images / "train/class0/8.jpg")  # number 4: the last one of class 0
    batches = loader(images, way, "skip", batch=1)
    labels = [int(y) for _, y, _ in epoch(batches)]
    assert labels == [[0, 0, 0, 0, 1, 1, 1, 1, 1][number] for number in order(batches)]
    damage_empty(images / "train/class1/7.jpg")  # number 8: the first image follows the last one
    batches = loader(images, way, "skip", batch=1)
    labels = [int(y) for _, y, _ in epoch(batches)]
    assert labels == [[0, 0, 0, 0, 1, 1, 1, 1, 0][number] for number in order(batches)]
    assert len(batches.skipped) == 2
    tally("survived", 2)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("way", ["memory", "alone", "workers"])
def test_batches_of_training_keep_their_size(images, tally, way, drop_last):
    damage_empty(images / BAD)
    batches = loader(images, way, "skip", **{"SOLVER.DROP_LAST": drop_last})
    for number in (1, 2, 3):
        sizes = [4, 4] if drop_last else [4, 4, 1]
        assert [len(y) for _, y, _ in epoch(batches, number)] == sizes
        assert batches.taken == batches.epoch_images == sum(sizes)
    tally("survived")


@pytest.mark.parametrize("way", ["memory", "alone", "workers"])
def test_evaluation_skips_and_counts_a_damaged_image(images, tally, way):
    shutil.copytree(images / "train", images / "val")
    whole = epoch(loader(images, way, "skip", split="val", **{"SOLVER.TEST_BATCH_SIZE": 3}))
    damage_empty(images / "val/class0/4.jpg")
    with refused(tally, "val/class0/4.jpg"):
        epoch(loader(images, way, split="val"))
    batches = loader(images, way, "skip", split="val", **{"SOLVER.TEST_BATCH_SIZE": 3})
    found = epoch(batches)
    assert [len(y) for _, y, _ in found] == [2, 3, 3]
    assert torch.equal(torch.cat([x for x, _, _ in found]), torch.cat([x for x, _, _ in whole])[[0, 1, *range(3, 9)]])
    assert [taken for *_, taken in found] == [3, 6, 9]
    assert list(batches.skipped) == [str(images / "val/class0/4.jpg")]
    single = epoch(loader(images, way, "skip", split="val", **{"SOLVER.TEST_BATCH_SIZE": 1}))
    assert [len(y) for _, y, _ in single] == [1, 1, 0, 1, 1, 1, 1, 1, 1]
    tally("survived")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("way", ["memory", "alone", "workers"])
def test_too_many_unreadable_images_in_a_row_are_a_storage_error(images, tally, way, split):
    shutil.copytree(images / "train", images / "val")
    paths = sorted((images / split).rglob("*.jpg"))
    for path in paths if split == "train" else paths[:8]:
        path.unlink()
        path.symlink_to("gone")
    more = {"SOLVER.TEST_BATCH_SIZE": 8}
    if not (split == "val" and way == "memory"):  # MemoryLoader reads all images in one batch here
        with refused(tally, "in a row", "storage", images):
            epoch(loader(images, way, "skip", split=split, **more))
    shutil.copy(images / ("val" if split == "train" else "train") / "class0/0.jpg", images.parent / "good.jpg")
    paths[4].unlink()
    shutil.move(images.parent / "good.jpg", paths[4])
    found = epoch(loader(images, way, "skip", split=split, **more))
    assert sum(len(y) for _, y, _ in found) == (9 if split == "train" else 2)
    tally("survived")


def test_an_evaluation_of_no_image_is_refused(images, tally):
    shutil.copytree(images / "train", images / "val")
    for path in (images / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    model = build_model(load_cfg(None, ["DATASET.NAME", "digits", "DATASET.NUM_CLASSES", 2, "ISON.DEPTH", 8]))
    batches = loader(images, "alone", "skip", split="val", **{"SOLVER.TEST_BATCH_SIZE": 1, "DATASET.IMAGE_SIZE": 32,
                                                              "RUNTIME.INPUT": "workers"})  # fmt: skip
    with refused(tally, "no image"):
        evaluate(model, batches, torch.device("cpu"))


def test_errors_are_passed_between_processes_unchanged(tmp_path):
    error = ImageError(tmp_path / "a\n.jpg", "is no\nimage")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.path, copy.reason) == (str(error), error.path, error.reason)
    assert str(copy).isprintable()


def test_out_of_memory_and_too_many_open_files_are_not_image_errors(images, tally, monkeypatch):
    def lacks(error):
        def opened(*_, **__):
            raise error

        monkeypatch.setattr(decode.Image, "open", opened)

    lacks(MemoryError())
    with refused(tally, "MemoryError", "DATASET.NUM_WORKERS"):
        loader(images, on_error="skip")
    lacks(OSError(errno.EMFILE, "Too many open files"))
    with refused(tally, "Too many open files", "ulimit -n"):
        loader(images, on_error="skip")


# Formats


def sixteen(values):
    return values.astype(">u2").tobytes()


GREY16 = picture(64, 48)[..., 1].astype(np.uint16) * 256 + 200  # with rounding, the result is off by one
TAGS12 = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 110, 278: 1, 279: 3}  # 2 x 1 pixels of 12 bits, grey
TIFF12 = (
    b"II*\0\x08\0\0\0" + struct.pack("<H", len(TAGS12))
    + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in TAGS12.items())
    + bytes(4) + bytes([0x12, 0x3A, 0xBC])
)  # fmt: skip


def grey16_png():
    rows = b"".join(b"\0" + sixteen(row) for row in GREY16)
    return png(64, 48, 16, 0, rows), GREY16 >> 8, 0


def grey16_tiff():
    return encoded(GREY16, "TIFF"), GREY16 >> 8, 0


def grey16_pgm():
    return b"P5 64 48 65535\n" + sixteen(GREY16), GREY16 >> 8, 0


def grey12_tiff():
    return TIFF12, np.array([[0x12, 0xAB]]), 0


def colour16_png():
    colour = np.stack([GREY16, 65535 - GREY16, GREY16 // 2], -1)
    return png(64, 48, 16, 2, b"".join(b"\0" + sixteen(row) for row in colour)), colour >> 8, 0


def cmyk_jpeg():
    return encoded(Image.fromarray(picture()).convert("CMYK"), quality=95), picture(), 6


def grey_jpeg():
    grey = np.array(Image.fromarray(picture()).convert("L"))
    return encoded(grey, quality=95), grey, 6


def rotated_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    return encoded(picture(), quality=95, exif=exif), picture(), 6


def png_named_jpg():
    return encoded(picture(), "PNG"), picture(), 0


def palette_png():
    paletted = Image.fromarray(picture()).quantize(8)
    return encoded(paletted, "PNG", transparency=bytes([0, 128] * 4)), np.array(paletted.convert("RGB")), 0


def rgba_png():
    return encoded(np.dstack([picture(), picture()[..., 0]]), "PNG"), picture(), 0


def grey_and_alpha_png():
    return encoded(Image.fromarray(picture()).convert("LA"), "PNG"), Image.fromarray(picture()).convert("L"), 0


def one_bit_png():
    bits = Image.fromarray(picture()).convert("1")
    return encoded(bits, "PNG"), bits.convert("L"), 0


def animated_png():
    return encoded(picture(), "PNG", save_all=True, append_images=[Image.new("RGB", (96, 80))]), picture(), 0


def animated_gif():
    first = Image.fromarray(picture()).quantize(16)
    return encoded(first, "GIF", save_all=True, append_images=[Image.new("P", (96, 80))]), first.convert("RGB"), 0


def animated_webp():
    options = {"save_all": True, "append_images": [Image.new("RGB", (96, 80))], "lossless": True}
    return encoded(picture(), "WEBP", **options), picture(), 0


def animated_avif():
    options = {"save_all": True, "append_images": [Image.new("RGB", (96, 80))], "quality": 95, "subsampling": "4:4:4"}
    return encoded(picture(), "AVIF", **options), picture(), 6


def two_pictures_in_a_jpeg():
    options = {"save_all": True, "append_images": [Image.new("RGB", (96, 80))], "quality": 95}
    return encoded(picture(), "MPO", **options), picture(), 6


def stacked_tiff():
    return encoded(picture(), "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]), picture(), 0


FORMATS = [grey16_png, grey16_tiff, grey16_pgm, grey12_tiff, colour16_png, cmyk_jpeg, grey_jpeg, rotated_jpeg,
           png_named_jpg, palette_png, rgba_png, grey_and_alpha_png, one_bit_png, animated_png, animated_gif,
           animated_webp, animated_avif, two_pictures_in_a_jpeg, stacked_tiff]  # fmt: skip


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("case", FORMATS)
def test_both_decoders_read_every_format_correctly_whatever_its_name(tmp_path, tally, case, suffix):
    data, expected, tolerance = case()
    expected = np.asarray(expected).astype(int)
    expected = np.stack([expected] * 3, -1) if expected.ndim == 2 else expected
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        found = {name: read(path).permute(1, 2, 0).numpy().astype(int) for name, read in READERS.items()}
    for pixels in found.values():
        assert pixels.shape == expected.shape
        assert np.abs(pixels - expected).max() <= tolerance
    assert np.abs(found["pil"] - found["torch"]).max() <= 3
    tally("survived")


def test_pillow_gives_no_warning_below_its_limit_and_refuses_pictures_above(tmp_path, tally, monkeypatch):
    """The test lowers Pillow's limit. Pillow warns above the limit, and refuses more than twice as many pixels."""
    assert 2 * Image.MAX_IMAGE_PIXELS == 178_956_970  # as docs/reliability.md says
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 40)
    Image.new("1", (56, 56)).save(tmp_path / "below.png")
    Image.new("1", (57, 57)).save(tmp_path / "above.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(decode)  # sets the module's warning filters again, after pytest's
        assert read_image(tmp_path / "below.png").size == (56, 56)
    tally("survived")
    with refused(tally, tmp_path / "above.png", "3249 pixels"):
        read_image(tmp_path / "above.png")


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_is_read_up_to_the_limit_of_pixels_and_refused_above_it(tmp_path, tally, monkeypatch, reader, kind):
    """A larger picture is refused from its header, before a decoder is called."""
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(picture(100, 100), kind))
    assert READERS[reader](path).shape == (3, 100, 100)
    tally("survived")
    path.write_bytes(encoded(picture(101, 100), kind))
    monkeypatch.setattr(decode, "to_rgb", lambda _: pytest.fail("Pillow decodes it"))
    monkeypatch.setattr(torchvision.io, "decode_jpeg", lambda *_: pytest.fail("torchvision decodes it"))
    with refused(tally, path, "10100 pixels", "10000"):
        READERS[reader](path)


# Names and folders


@pytest.mark.parametrize("way", ["memory", "alone torch", "workers torch"])
def test_files_with_unusual_names_are_read_and_reported_on_one_line(images, tally, way):
    source = images / "train/class0/4.jpg"
    names = [b"new\nline.jpg", b"\xff\xfe.jpg", b"\x1b[31mred.jpg", "日本.jpg".encode(), b"a b'\".jpg"]
    paths = [Path(os.fsdecode(os.path.join(os.fsencode(source.parent), name))) for name in names]
    for path in paths:
        shutil.copy(source, path)
    assert sum(len(y) for _, y, _ in epoch(loader(images, way))) == 14
    tally("survived", len(names))
    for path in paths:
        whole = path.read_bytes()
        path.write_bytes(whole[:99])
        with refused(tally, source.parent, printable(path.name)):
            epoch(loader(images, way))
        path.write_bytes(whole)


def test_hidden_files_and_folders_are_not_part_of_the_set(images, tally):
    for name in ("._4.jpg", ".AppleDouble/4.jpg", ".ipynb_checkpoints/4-checkpoint.jpg"):
        path = images / "train/class0" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\5\x16\7")
    assert len(image_folder(images, "train").paths) == 9
    tally("survived", 3)


def test_links_to_folders_and_files_are_followed(images, tally, tmp_path):
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    shutil.copy(images / "train/class0/4.jpg", tmp_path / "elsewhere/deep/new.jpg")
    (images / "train/class0/more").symlink_to(tmp_path / "elsewhere")
    (images / "train/class1/same.jpg").symlink_to(images / "train/class0/4.jpg")
    source = image_folder(images, "train")
    assert len(source.paths) == 11
    assert images / "train/class0/more/deep/new.jpg" in source.paths
    shutil.copytree(images / "train", images / "val", symlinks=True)
    (images / "val/class1").rename(tmp_path / "class1")
    (images / "val/class1").symlink_to(tmp_path / "class1")
    assert len(image_folder(images, "val").paths) == 11
    tally("survived", 3)


def link(place, target):
    return lambda train: ((train / place).symlink_to(target), train / place)[1]


def unix_socket(train):
    with contextlib.chdir(train / "class0"), socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")  # a relative name: the full path may be too long for a socket
    return train / "class0/socket.jpg"


def two_links(train):
    (train / "class0/to1").symlink_to(train / "class1")
    (train / "class1/to0").symlink_to(train / "class0")
    return train


FOLDER_FAULTS = {
    "a class that is a link to itself": link("loop", "loop"),
    "a class that is a link to nothing": link("gone", "nowhere"),
    "a class that is a link to the set": link("loop", "."),
    "a file that is a link to itself": link("class0/loop.jpg", "loop.jpg"),
    "a folder that is a link to itself": link("class0/loop", "loop"),
    "a link to the class": link("class0/loop", "."),
    "a link to the set": link("class0/loop", ".."),
    "a link to the root of all": link("class0/loop", "../../.."),
    "two classes that are linked to each other": two_links,
    "a folder that is a link to nothing": link("class0/gone", "nowhere"),
    "a socket": unix_socket,
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_files_that_would_be_skipped_and_endless_links_are_named(images, tally, fault):
    place = FOLDER_FAULTS[fault](images / "train")
    with refused(tally, place, "remove it"):
        loader(images, on_error="skip")


def test_a_split_that_is_a_link_to_itself(images, tally):
    (images / "val").symlink_to("val")
    with refused(tally, images / "val", "symbolic links"):
        loader(images, split="val")


def test_a_class_only_in_val_is_refused_and_a_class_only_in_train_is_logged(images, tally, caplog):
    shutil.copytree(images / "train/class0", images / "val/class0")
    caplog.set_level(logging.WARNING, "isonet")
    assert set(loader(images, split="val", batch=9).labels.tolist()) == {0}
    assert "lacks 1 of the 2 classes, e.g. class1" in caplog.text
    tally("survived")
    shutil.copytree(images / "train/class0", images / "val/other")
    with refused(tally, images / "val/other", "not one of the 2 classes"):
        loader(images, split="val")


def in_child(task):
    """Run ``task`` in a child process and return its result, a str."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the parent's threads do not exist here, and torch would wait for them forever
            answer = task()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    return answer


@pytest.fixture
def public_images(images):
    """The images in a folder that every user may read: pytest's folders are only for their owner."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield Path(shutil.copytree(images, place / "set"))
    shutil.rmtree(place)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("what", ["train/class0/4.jpg", "train/class0", "train", "."])
@pytest.mark.parametrize("way", ["memory", "alone torch", "workers"])
def test_files_without_read_permission_are_named(public_images, tally, what, way):
    place = public_images / what
    place.chmod(0)

    def as_nobody():
        os.setgid(65534)
        os.setuid(65534)
        try:
            epoch(loader(public_images, way))
        except DataError as error:
            if what.endswith("jpg"):
                batches = loader(public_images, way, "skip")
                assert sum(len(y) for _, y, _ in epoch(batches)) == 9
                assert list(batches.skipped) == [str(place)]
            return f"refused: {error}"
        return "read"

    answer = in_child(as_nobody)
    place.chmod(0o755)
    assert answer.startswith(f"refused: {place}"), answer
    assert "Permission denied" in answer
    assert answer.isprintable()
    tally("refused")


@pytest.mark.parametrize("way", ["alone", "alone torch", "workers", "workers torch"])
def test_a_file_that_disappears_during_a_run_is_named_or_replaced(images, tally, way):
    stops, skips = loader(images, way), loader(images, way, "skip")
    epoch(stops), epoch(skips)
    path = images / "train/class0/4.jpg"
    path.unlink()
    with refused(tally, path, "No such file"):
        epoch(stops, 2)
    for number in (2, 3):
        assert sum(len(y) for _, y, _ in epoch(skips, number)) == 9
    assert list(skips.skipped) == [str(path)]
    tally("survived")
    shutil.rmtree(images / "train")
    with refused(tally, "in a row", "storage"):
        epoch(skips, 4)


@pytest.mark.parametrize(("bad", "size", "stops"), [(2, 2, False), (7, 7, False), (8, 8, True), (7, 8, False)])
def test_in_evaluation_a_small_unreadable_batch_is_skipped_and_a_large_one_is_a_storage_error(bad, size, stops, caplog):
    unreadable = Unreadable("leave out")
    errors = [ImageError(f"{i}.jpg", "no image") for i in range(bad)]
    if stops:
        with pytest.raises(DataError, match="storage"):
            unreadable.note(errors, size - bad, bad)
    else:
        unreadable.note(errors, size - bad, bad)
    assert len(unreadable.skipped) == len(caplog.messages) == bad


def test_the_log_names_the_first_ten_images(caplog):
    unreadable = Unreadable("leave out")
    for i in range(30):
        unreadable.note([ImageError(f"{i // 2}.jpg", "no image")], 3, 1)
    assert len(unreadable.skipped) == 15
    assert len(caplog.messages) == 10
