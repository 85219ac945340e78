"""Digits, CIFAR downloaded from a server on this machine, and image folders with every kind of error."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import tarfile
import threading

import numpy as np
import pytest
import torchvision.datasets as tv
from PIL import Image

from benchmarks.study import images
from isonet import load_cfg
from isonet.data import build_loader
from isonet.data.build import build_source
from isonet.data.folders import IMG_EXTENSIONS, image_folder
from isonet.data.sources import digits
from isonet.errors import DataError, UserError


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


# CIFAR: the real download code of torchvision against a server on this machine


@pytest.fixture
def cifar_server(tmp_path, monkeypatch):
    """A tiny CIFAR-10 in the official layout, served on 127.0.0.1."""
    folder, files = tmp_path / "served", {}
    folder.mkdir()
    rng = np.random.RandomState(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in names:
        pixels = rng.randint(0, 256, (4, 3072), dtype=np.uint8)
        files[name] = pickle.dumps({"data": pixels, "labels": [0, 3, 5, 9]})
    files["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    with tarfile.open(folder / tv.CIFAR10.filename, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{tv.CIFAR10.base_folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    archive_md5 = hashlib.md5((folder / tv.CIFAR10.filename).read_bytes()).hexdigest()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(tv.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{tv.CIFAR10.filename}")
    monkeypatch.setattr(tv.CIFAR10, "tgz_md5", archive_md5)
    monkeypatch.setattr(tv.CIFAR10, "train_list", [[name, md5[name]] for name in names[:5]])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(tv.CIFAR10, "meta", {**tv.CIFAR10.meta, "md5": md5["batches.meta"]})
    yield server
    server.shutdown()
    server.server_close()


def cifar_cfg(root, download):
    names = ["DATASET.NAME", "CIFAR10", "DATASET.NUM_CLASSES", 10]
    return load_cfg(None, [*names, "DATASET.ROOT", str(root), "DATASET.DOWNLOAD", download])


def test_cifar_is_downloaded_on_request_and_found_afterwards(cifar_server, tmp_path):
    root = tmp_path / "data"
    with pytest.raises(DataError, match=r"CIFAR10 is missing.*DATASET.DOWNLOAD True.*cifar-10-batches-py"):
        build_loader(cifar_cfg(root, False), "train")
    assert build_loader(cifar_cfg(root, True), "train").num_images == 20
    cifar_server.shutdown()
    val = build_loader(cifar_cfg(root, False), "val")
    assert (val.num_images, list(val.classes)) == (4, list("abcdefghij"))


def test_the_studys_images_are_derived_from_cifar(cifar_server, tmp_path, capsys):
    root = tmp_path / "data"
    images.main(images.parse_args(["--root", str(root)]))
    files = sorted(file.relative_to(root / "cifar10-jpg") for file in (root / "cifar10-jpg").rglob("*.jpg"))
    assert [str(file) for file in files[:6]] == [f"train/{name}" for name in (
        "a/0000.jpg", "a/0001.jpg", "a/0002.jpg", "a/0003.jpg", "a/0004.jpg", "d/0000.jpg"
    )]  # fmt: skip
    assert len(files) == 24
    theirs = tv.CIFAR10(str(root), train=False)
    with Image.open(root / "cifar10-jpg/val/j/0000.jpg") as ours:
        assert ours.size == (32, 32)
        smooth = np.asarray(theirs[3][0].reduce(8), float)  # JPEG changes the noise but not its means
        assert abs(np.asarray(ours.reduce(8), float) - smooth).mean() < 12
    with pytest.raises(UserError, match="already"):
        images.main(images.parse_args(["--root", str(root)]))


def test_without_network_the_error_says_where_to_put_the_files(cifar_server, tmp_path):
    cifar_server.shutdown()
    cifar_server.server_close()
    with pytest.raises(DataError, match=r"CIFAR10 .*http://.*cifar-10-python.tar.gz and unpack"):
        build_loader(cifar_cfg(tmp_path / "data", True), "train")


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


def test_image_extensions_equal_torchvisions():
    assert IMG_EXTENSIONS == tv.folder.IMG_EXTENSIONS
