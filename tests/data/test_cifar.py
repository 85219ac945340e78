"""CIFAR from a server on this machine, and a user's own batches, which may be hostile."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from PIL import Image

from benchmarks.study import images
from isonet import load_cfg
from isonet.data import build_loader
from isonet.data.build import build_source
from isonet.errors import DataError, UserError
from isonet.files.download import fetch

LABELS = [0, 3, 5, 9]
PIXELS = np.random.RandomState(1).randint(0, 256, (4, 3072), dtype=np.uint8)


@pytest.fixture
def cifar_server(tmp_path, monkeypatch):
    """A tiny CIFAR-10 in the official layout, served on 127.0.0.1."""
    folder, files = tmp_path / "served", {}
    folder.mkdir()
    rng = np.random.RandomState(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in names:
        files[name] = pickle.dumps({"data": rng.randint(0, 256, (4, 3072), dtype=np.uint8), "labels": LABELS})
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

        def do_GET(self):
            if not hasattr(self.server, "announced"):
                return super().do_GET()
            self.send_response(200)
            if self.server.announced:
                self.send_header("Content-Length", str(self.server.announced))
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(100_000))
            except OSError:
                self.server.closed.set()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.closed = threading.Event()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setattr(tv.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{tv.CIFAR10.filename}")
    monkeypatch.setattr(tv.CIFAR10, "tgz_md5", archive_md5)
    monkeypatch.setattr(tv.CIFAR10, "train_list", [[name, md5[name]] for name in names[:5]])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(tv.CIFAR10, "meta", {**tv.CIFAR10.meta, "md5": md5["batches.meta"]})
    yield server
    server.shutdown()
    server.server_close()


def cifar_cfg(root, download, *opts):
    names = ["DATASET.NAME", "CIFAR10", "DATASET.NUM_CLASSES", 10]
    return load_cfg(None, [*names, "DATASET.ROOT", str(root), "DATASET.DOWNLOAD", download, *opts])


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_cifar_is_downloaded_on_request_and_found_afterwards(cifar_server, tmp_path):
    root = tmp_path / "data"
    with pytest.raises(DataError, match=r"CIFAR10 is missing.*DATASET.DOWNLOAD True.*cifar-10-batches-py"):
        build_loader(cifar_cfg(root, False), "train")
    assert build_loader(cifar_cfg(root, True), "train").num_images == 20
    cifar_server.shutdown()
    val = build_loader(cifar_cfg(root, False), "val")
    assert (val.num_images, list(val.classes)) == (4, list("abcdefghij"))
    assert sorted(path.name for path in root.iterdir()) == [tv.CIFAR10.base_folder, tv.CIFAR10.filename]
    for split in ("train", "val"):
        ours, theirs = build_source(cifar_cfg(root, False), split), tv.CIFAR10(str(root), train=split == "train")
        assert np.array_equal(ours.images, theirs.data)
        assert (ours.labels, ours.classes) == (theirs.targets, theirs.classes)


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


@pytest.mark.parametrize("announced", [None, 10**10], ids=["endless", "too long"])
def test_a_download_ends_at_a_limit_and_leaves_nothing(cifar_server, tmp_path, announced):
    cifar_server.announced = announced
    with pytest.raises(OSError, match=r"exceeds 3 MB"):
        fetch(tv.CIFAR10.url, tmp_path / "file", 3_000_000)
    assert (tmp_path / "file").stat().st_size < 5_000_000
    assert cifar_server.closed.wait(20)
    if announced:
        with pytest.raises(DataError, match=r"CIFAR10 is missing.*exceeds"):
            build_source(cifar_cfg(tmp_path / "data", True), "val")
        assert not any(contents(tmp_path / "data").values())  # only an empty lock file may remain


# Files of a user


def user_batch(root, name="test_batch", data=None):
    path = root / tv.CIFAR10.base_folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"data": PIXELS, "labels": LABELS}) if data is None else data)
    return path


@pytest.mark.parametrize("download", [False, True])
def test_a_users_batches_are_named_and_kept_and_read_without_the_checksum(cifar_server, tmp_path, caplog, download):
    root = tmp_path / "data"
    build_source(cifar_cfg(root, True), "val")
    path = user_batch(root)
    before = contents(root)
    for split in ("train", "val"):
        with pytest.raises(DataError, match=f"{path} .*DATASET.CHECKSUM False"):
            build_source(cifar_cfg(root, download), split)
    unchecked = cifar_cfg(root, download, "DATASET.CHECKSUM", False)
    caplog.set_level("INFO", "isonet")
    source = build_source(unchecked, "val")
    assert np.array_equal(np.transpose(source.images, (0, 3, 1, 2)).reshape(4, 3072), PIXELS)
    assert source.labels == LABELS
    assert len(build_source(unchecked, "train").labels) == 20
    assert contents(root) == before
    assert all("1 files" in message and str(path) in message for message in caplog.messages)
    assert len(caplog.messages) == 2


def test_a_download_adds_the_missing_files_and_replaces_none(cifar_server, tmp_path):
    root = tmp_path / "data"
    own = user_batch(root), root / tv.CIFAR10.filename
    own[1].write_bytes(b"an archive of the user")
    before = [path.read_bytes() for path in own]
    assert len(build_source(cifar_cfg(root, True, "DATASET.CHECKSUM", False), "train").labels) == 20
    assert [path.read_bytes() for path in own] == before
    assert len(contents(root)) == 8
    for path in own:
        path.unlink()
    (root / tv.CIFAR10.filename).write_bytes((tmp_path / "served" / tv.CIFAR10.filename).read_bytes())
    cifar_server.shutdown()
    cifar_server.server_close()
    assert len(build_source(cifar_cfg(root, True), "val").labels) == 4  # from the archive, without a network


class Python2(pickle._Pickler):
    """Writes text and bytes as Python 2 does, like the published batches."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_text(self, text):
        data = text.encode() if isinstance(text, str) else text
        short = len(data) < 256
        self.write((b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data))) + data)
        self.memoize(text)

    dispatch[bytes] = dispatch[str] = save_text


def python2(batch):
    data = io.BytesIO()
    Python2(data, protocol=2).dump(batch)
    return data.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


BATCHES = {
    "Python 2": python2({"data": PIXELS, "labels": LABELS, "filenames": ["a.png"]}),
    "keys of bytes": pickle.dumps({b"data": PIXELS, b"labels": LABELS}),
    "by columns": pickle.dumps({"data": np.asfortranarray(PIXELS), "labels": LABELS}),
    "not contiguous": pickle.dumps({"data": np.repeat(PIXELS, 2, 1)[:, ::2], "labels": LABELS}),
    "an array of labels": pickle.dumps({"data": PIXELS, "labels": np.array(LABELS)}),
    "numpy's numbers": pickle.dumps({"data": PIXELS, "labels": list(np.array(LABELS))}),
    "other byte order": pickle.dumps({"data": PIXELS, "labels": np.array(LABELS, ">i4")}),
    "fine labels": pickle.dumps({"data": PIXELS, "coarse_labels": [0] * 4, "fine_labels": LABELS}),
    **{
        f"protocol {number}": pickle.dumps({"data": PIXELS, "labels": np.array(LABELS)}, number)
        for number in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


def without_checksum(root, data):
    user_batch(root, "batches.meta", pickle.dumps({"label_names": list("abcdefghij")}))
    path = user_batch(root, data=data)
    return path, cifar_cfg(root, False, "DATASET.CHECKSUM", False)


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_every_program_are_read(tmp_path, kind):
    source = build_source(without_checksum(tmp_path, BATCHES[kind])[1], "val")
    assert np.array_equal(source.images.transpose(0, 3, 1, 2).reshape(4, 3072), PIXELS)
    assert source.labels == LABELS


class Mark:
    def __reduce__(self):
        return os.mkdir, ("mark",)


OTHERS = {
    "os|posix": pickle.dumps({"data": PIXELS, "labels": Mark()}),
    "torch": pickle.dumps({"data": torch.from_numpy(PIXELS), "labels": LABELS}),
    "UnpicklingError|EOFError": pickle.dumps({"data": PIXELS, "labels": LABELS})[:-9],
    "32, 32, 3": pickle.dumps({"data": PIXELS.reshape(4, 32, 32, 3), "labels": LABELS}),
    "float": pickle.dumps({"data": PIXELS / 255, "labels": LABELS}),
    "object": pickle.dumps({"data": PIXELS.astype(object), "labels": LABELS}),
    "3072": pickle.dumps({"data": PIXELS, "labels": LABELS[:3]}),
    "from 0 to 9": pickle.dumps({"data": PIXELS, "labels": [0, 1, 2, 10]}),
    "labels": pickle.dumps({"data": PIXELS}),
    "list": pickle.dumps([PIXELS, LABELS]),
}


@pytest.mark.parametrize("word", OTHERS)
def test_other_files_are_refused_and_run_no_code(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    path, cfg = without_checksum(tmp_path, OTHERS[word])
    with pytest.raises(DataError, match=f"{path}: .*({word})") as error:
        build_source(cfg, "val")
    assert str(error.value).isprintable()
    assert not (tmp_path / "mark").exists()
