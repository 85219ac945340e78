"""Digits, and image folders with every kind of error."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isonet import load_cfg
from isonet.data import build_loader
from isonet.data.build import build_source
from isonet.data.folders import Paths, image_folder
from isonet.data.sources import digits
from isonet.errors import DataError


def test_digits_are_the_fixed_split():
    train, val = digits("train"), digits("val")
    assert (len(train.labels), len(val.labels)) == (1437, 360)
    assert train.images.shape == (1437, 8, 8, 3)
    assert train.images.max() == 255
    counts = np.bincount(val.labels)
    assert (counts.min(), counts.max()) == (35, 37)


def test_digits_equal_scikit_learns():
    sklearn = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    theirs = sklearn.load_digits()
    ours = sorted((label, *pixels.flatten()) for part in ("train", "val")
                  for label, pixels in zip(digits(part).labels, digits(part).images[..., 0].tolist(), strict=True)
                  for pixels in [np.array(pixels)])  # fmt: skip
    scaled = np.round(theirs.images * 255 / 16).astype(int)
    assert ours == sorted((label, *image.flatten()) for label, image in zip(theirs.target, scaled, strict=True))


# Image folders


def save(path, color=(200, 30, 60), size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            save(tmp_path / "pets" / split / name / "1.png")
            save(tmp_path / "pets" / split / name / "deeper" / "2.jpg")
    return tmp_path / "pets"


def folder_cfg(folder, *opts):
    base = ["DATASET.ROOT", str(folder.parent), "DATASET.NAME", folder.name, "DATASET.NUM_CLASSES", 2]
    return load_cfg(None, [*base, "DATASET.NUM_WORKERS", 0, *opts])


def test_images_are_in_the_order_of_their_paths_and_named_without_folders(folder):
    """``Path`` compares folder by folder, so ``a/z.png`` comes before ``a.png`` although ``/`` follows ``.``."""
    names = ["a/z.png", "a.png", "a-/b.png", "B.png", "ä.png", "\udce4.png", "a b.png", "a0.png", "a/b.jpg"]
    for name in names:
        save(folder / "train" / "cat" / name)
    source = image_folder(folder, "train")
    stored = [path for split in ("cat", "dog") for path in sorted((folder / "train" / split).rglob("*.*g"))]
    assert list(source.paths) == stored
    assert source.names() == b"\0".join(os.fsencode(path.name) for path in stored)


def test_stored_paths_are_a_sequence_of_paths():
    plain = [Path("a/b.png"), Path("ä"), Path("c/\udcff.jpg"), Path("/d")]
    paths = pickle.loads(pickle.dumps(Paths(plain)))  # as a spawned worker process receives them
    assert list(paths) == plain
    assert (len(paths), paths[-1], paths[1:3]) == (4, plain[-1], plain[1:3])
    assert plain[2] in paths
    for outside in (4, -5):
        with pytest.raises(IndexError):
            paths[outside]


def test_labels_are_positions_of_sorted_class_folders(folder):
    source = build_source(folder_cfg(folder), "train")
    assert source.classes == ["cat", "dog"]
    assert source.labels == [0, 0, 1, 1]
    assert [str(p.relative_to(folder / "train")) for p in source.paths][:2] == ["cat/1.png", "cat/deeper/2.jpg"]


def test_val_has_the_labels_of_train_or_of_the_checkpoint(folder):
    for file in (folder / "val" / "cat").rglob("*.*"):
        file.unlink()
    (folder / "val" / "cat" / "deeper").rmdir()
    (folder / "val" / "cat").rmdir()
    assert image_folder(folder, "val").labels == [1, 1]
    assert image_folder(folder, "val", ["ant", "cat", "dog"]).labels == [2, 2]


def break_nothing_there(folder):
    (folder / "train").rename(folder / "elsewhere")
    return [str(folder / "train"), "No such file or directory", "DATASET.ROOT"]


def break_no_classes(folder):
    (folder / "train").rename(folder / "elsewhere")
    (folder / "train").mkdir()
    return [str(folder / "train"), "no class folders"]


def break_empty_class(folder):
    (folder / "train" / "eel").mkdir()
    return [str(folder / "train" / "eel"), "no image"]


def break_too_many_classes(folder):
    save(folder / "train" / "eel" / "1.png")
    return ["3 classes", "DATASET.NUM_CLASSES is 2", "set it to 3"]


def break_an_image(folder):
    path = folder / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    return [str(path), "cannot be read as an image"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [32, 96], ids=["memory", "workers"])
@pytest.mark.parametrize(
    "damage", [break_nothing_there, break_no_classes, break_empty_class, break_too_many_classes, break_an_image]
)
def test_a_broken_folder_is_named(folder, damage, size, workers):
    words = damage(folder)
    with pytest.raises(DataError) as error:
        for _ in build_loader(folder_cfg(folder, "DATASET.IMAGE_SIZE", size, "DATASET.NUM_WORKERS", workers), "train"):
            pass
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_a_class_only_in_val_is_named(folder):
    save(folder / "val" / "eel" / "1.png")
    with pytest.raises(DataError, match=r"val/eel: not one of the 2 classes"):
        build_source(folder_cfg(folder), "val")
