"""Damaged or unusual checkpoints from others: loaded correctly, or refused in one sentence and never executed.

Each file is also harmless to torch, which loads it or refuses it with an ordinary exception.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import io
import os
import pathlib
import pickle
import random
import socket
import tarfile
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch

import test as test_script
from conftest import REPO, TINY
from isonet import build_model, load_cfg, load_weights
from isonet.errors import CheckpointError, run_cli
from isonet.files.archive import pack
from isonet.files.checkpoint import read_checkpoint, save_checkpoint
from isonet.files.pickles import ArchiveError, PickleReader

CFG = load_cfg(None, TINY)


def weights(seed=0):
    torch.manual_seed(seed)
    return build_model(CFG).state_dict()


def own() -> bytes:
    """Return a checkpoint as this project writes it."""
    return pack({"model": weights(), "config": CFG.dump(), "classes": [str(i) for i in range(10)]})


def foreign(content: object) -> bytes:
    """Return ``content`` as ``torch.save`` writes it, without this project's checksum."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content: object) -> bytes:
    """Return ``content`` as torch saved it before version 1.6."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def changed(data: bytes, **parts: bytes | None) -> bytes:
    """Return the archive ``data`` with other contents for some parts, given by the last component of their names."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = parts.get(entry.filename.rpartition("/")[2].replace(".", "_"), old.read(entry.filename))
            new.writestr(entry.filename, content)
    return out.getvalue()


@pytest.fixture
def refused(tmp_path, capsys, tally):
    """Check that the library refuses a file and keeps the model unchanged, and that test.py prints one line."""

    path, model = tmp_path / "c.pt", build_model(CFG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = ["--ckpt", str(path), "--cfg", str(REPO / "configs/digits_ISO20.yaml"), *map(str, TINY)]

    def check(data: bytes, *words: str):
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as error:
            load_weights(model, path)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert str(path) in str(error.value)
        for word in words:
            assert word in str(error.value), error.value
        capsys.readouterr()
        assert run_cli(test_script.main, test_script.parse_args(args)) == 2
        output = capsys.readouterr()
        (line,) = output.err.splitlines()
        assert line.startswith(f"error: {path}: ")
        assert len(line) < 700
        assert line.isprintable()
        assert "Traceback" not in output.out
        tally("refused")

    return check


class Runs:
    """An object that the pickle module stores as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["top", "inside", "key"])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "protocol 5"])
def test_pickles_that_would_run_code(refused, tmp_path, where, form):
    call = Runs(os.mkdir, str(tmp_path / "ran"))
    content = {"top": call, "inside": {"model": {**weights(), "x": call}}, "key": {"model": {(call,): 1}}}[where]
    if form == "plain pickle":
        data = pickle.dumps(content)
    elif form == "protocol 5":
        data = pickle.dumps(content, protocol=5)
    else:
        data = foreign(content) if form == "zip" else legacy(content)
    refused(data)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("function", [eval, getattr, __import__, torch.load, torch.hub.load, open])
def test_other_calls_that_a_pickle_could_make(refused, function):
    refused(foreign({"model": Runs(function, "1")}))


@pytest.mark.parametrize("packed", ["all", "version"])
def test_a_packed_archive(refused, packed):
    """All parts are compressed, or only one of two bytes, which compression does not reduce. Torch reads both."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(own())) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            kind = zipfile.ZIP_DEFLATED if packed == "all" or entry.filename.endswith(packed) else zipfile.ZIP_STORED
            new.writestr(entry.filename, old.read(entry.filename), kind)
    refused(out.getvalue(), "more than its size")


def test_parts_that_overlap(refused):
    """One part has a second directory entry, so the sum of the parts is larger than the file."""
    out = io.BytesIO(changed(foreign({"w": torch.zeros(1000)})))
    with zipfile.ZipFile(out, "a") as archive:
        part = archive.getinfo("archive/data/0")
        twin = zipfile.ZipInfo("archive/data/1")
        for name in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
            setattr(twin, name, getattr(part, name))
        archive.filelist.append(twin)
        archive._didModify = True
    refused(out.getvalue(), "more than its size")


@pytest.mark.parametrize("name", ["archive/../archive/extra", "/archive/extra", "archive\\extra"])
def test_names_of_parts_that_are_not_plain_paths(refused, name):
    out = io.BytesIO(foreign(weights()))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(name, b"x")
    refused(out.getvalue(), "paths")


@pytest.mark.parametrize("name", ["archive/version", "archive/VERSION"])
def test_two_parts_of_one_name(refused, name):
    """Both parts have equal contents and the same name except for case, so all readers return the same."""
    out = io.BytesIO(foreign(weights()))
    with zipfile.ZipFile(out, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile warns about a second part of the same name
        archive.writestr(name, archive.read("archive/version"))
    refused(out.getvalue(), "the same name")


def part_of(data: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(f"archive/{name}")


def test_tensor_data_of_another_length_than_the_pickle_says(refused):
    """Test a file with longer data, whose rest torch ignores, and the comparison of lengths in both directions."""
    pickled = part_of(foreign({"w": torch.arange(999.0)}), "data.pkl")
    refused(changed(foreign({"w": torch.arange(1000.0)}), data_pkl=pickled), "as long as")
    numbers = torch.arange(1000.0).numpy().tobytes()
    for items in (998, 999, 1000):
        reader = PickleReader(io.BytesIO(pickled), 4 * 999, {"0": memoryview(bytearray(numbers[: 4 * items]))})
        if items == 999:
            assert torch.equal(reader.load()["w"], torch.arange(999.0))
        else:
            with pytest.raises(ArchiveError, match="as long as"):
                reader.load()


def test_a_tensor_that_is_longer_than_its_data(refused):
    """Each number of a shape is one byte. Only this project's reader, which compares them with the data, reads it."""
    pickled = part_of(foreign({"w": torch.arange(6.0).view(2, 3)}), "data.pkl")
    shape = b"K\x02K\x03\x86"
    for other in (b"K\x02K\x04\x86", b"K\x03K\x03\x86"):
        with pytest.raises(ArchiveError, match="longer than its data"):
            PickleReader(io.BytesIO(pickled.replace(shape, other)), limit=24).load()
    assert PickleReader(io.BytesIO(pickled), limit=24).load()["w"].shape == (2, 3)


ONE = foreign({"w": torch.ones(1)})  # torch writes the end record with 64-bit fields, the last 98 bytes
PLAIN = changed(ONE)  # zipfile writes the end record with 32-bit fields, the last 22 bytes
ADDED = "added"
ENDS = {
    "a byte before the end": (PLAIN[:-22] + b"\0" + PLAIN[-22:], ADDED),
    "a byte behind the end": (PLAIN + b"\0", ADDED),
    "half an end": (PLAIN[:-11], "end is missing"),
    "no end": (PLAIN[:-22], "end is missing"),
    "two ends": (PLAIN + PLAIN[-22:], ADDED),
    "two ends of 64 bits": (ONE[:-42] + ONE[-98:], "another directory"),
    "bytes before the archive": (b"x" * 100 + PLAIN, "is not a checkpoint"),
    "the letters PK before it": (b"PK" + PLAIN, ADDED),
}


@pytest.mark.parametrize("data", [ONE, PLAIN], ids=["64 bits", "32 bits"])
def test_an_archive_with_either_kind_of_end_record_is_read(tmp_path, tally, data):
    (tmp_path / "c.pt").write_bytes(data)
    assert read_checkpoint(tmp_path / "c.pt")["w"].tolist() == [1.0]
    tally("survived")


@pytest.mark.parametrize(("data", "words"), ENDS.values(), ids=ENDS)
def test_archives_with_more_or_fewer_bytes_than_their_directory_says(refused, data, words):
    refused(data, words)


def old_parts(content: object) -> tuple[bytes, bytes, bytes]:
    """Split a file older than torch 1.6: everything before the list of its storages, the list, and their numbers."""
    data = legacy(content)
    at = data.rindex(b"\x80\x02]")
    stop = data.index(b".", at) + 1
    return data[:at], data[at:stop], data[stop:]


def test_the_old_format_with_other_tensor_data_than_it_names(refused):
    """The missing storage belongs to an empty tensor, so torch reads no numbers from it."""
    head, keys, numbers = old_parts({"w": torch.zeros(0)})
    refused(head + pickle.dumps([], protocol=2), "tensor data")
    refused(head + pickle.dumps([*pickle.loads(keys), "more"], protocol=2) + numbers, "tensor data")
    refused(head + keys + (1).to_bytes(8, "little"), "as long as")
    refused(head + keys + numbers + b"x", "added")
    head, keys, numbers = old_parts({"w": torch.arange(1000.0)})
    refused(head + keys + numbers[:8], "end is missing")
    refused(head + keys + numbers[:-4], "end is missing")
    refused(head + keys + (999).to_bytes(8, "little") + numbers[8:-4], "as long as")


def test_an_opcode_that_no_weights_need(refused):
    array = b"\x80\x02" + pickle.BYTEARRAY8 + (1).to_bytes(8, "little") + b"x" + pickle.STOP
    refused(changed(foreign(weights()), data_pkl=array), "pickle opcode 150")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, "nested"),
        ({"model": {"w": np.ones(3)}}, "numpy"),
        ({"model": {"w": torch.ones(3), "x": argparse.Namespace()}}, "Namespace"),
        ({"net": torch.nn.Linear(2, 2)}, "Linear"),
        (torch.nn.Linear(2, 2), "state_dict()"),
    ],
    ids=["nested", "numpy", "object", "module", "whole module"],
)
def test_weights_that_are_more_than_tensors_and_how_to_save_them_alone(refused, content, word):
    refused(foreign(content), "is refused", word, "if you trust", "torch.save(")


@pytest.mark.parametrize(
    "form", ["arrays", "module", "module in a dictionary", "protocol 4", "bare, protocol 4", "plain pickle"]
)
def test_the_code_in_a_refusal_saves_the_weights_of_a_trusted_file(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    model = build_model(CFG)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    if form == "plain pickle":
        (tmp_path / "c.pt").write_bytes(pickle.dumps(arrays))
    elif form == "protocol 4":
        torch.save({"state_dict": model.state_dict(), "epoch": 1}, "c.pt", pickle_protocol=4)
    elif form == "bare, protocol 4":
        torch.save(model.state_dict(), "c.pt", pickle_protocol=4)
    else:
        content = {"arrays": {"net": arrays}, "module": model, "module in a dictionary": {"net": model}}
        torch.save(content[form], "c.pt")
    with pytest.raises(CheckpointError) as error:
        load_weights(build_model(CFG), "c.pt")
    exec(str(error.value).partition("alone: ")[2], {"torch": torch, "pickle": pickle, "FILE": "c.pt"})
    loaded = load_weights(build_model(load_cfg(None, [*TINY, "RUNTIME.SEED", 9])), "weights.pt").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_later_pickle_protocol_is_refused_as_such(refused, protocol):
    buffer = io.BytesIO()
    torch.save({"model": weights()}, buffer, pickle_protocol=protocol)
    refused(buffer.getvalue(), f"protocol {protocol}", "torch.load(")
    refused(pickle.dumps({"w": 1}, protocol), "torch.save did not write", "pickle.load(")


def test_an_object_number_that_no_pickler_writes(refused):
    """Picklers count their objects, and each object takes more than a byte. Torch accepts any small number."""
    one = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.LONG_BINPUT + (1000).to_bytes(4, "little") + pickle.STOP
    refused(changed(foreign(weights()), data_pkl=one), "more objects")


@pytest.mark.parametrize("function", [torch.Size, OrderedDict])
def test_a_tensor_where_a_pickle_has_a_tuple(refused, function):
    refused(foreign({"model": weights(), "x": Runs(function, torch.ones(2, 2))}), "in place of a tuple")


STORAGE = object()


class Pickler(pickle.Pickler):
    """A pickler that writes ``STORAGE`` as a reference to empty tensor data whose name is a tuple."""

    def persistent_id(self, obj):
        return ("storage", torch.FloatStorage, ("a", "b"), "cpu", 0, None) if obj is STORAGE else None


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({("a", "b"): 1}, "tuple as a key"),
        ({"model": {"w": ("a", "b")}}, "no state dictionary"),
        ({"w": STORAGE}, "text"),
    ],
    ids=["key", "value", "name of tensor data"],
)
def test_tuples_where_weights_have_no_tuple(refused, form, content, words):
    file = io.BytesIO()
    Pickler(file, protocol=2).dump(content)
    if form == "zip":
        data = changed(foreign(weights()), data_pkl=file.getvalue())
    else:
        head = b"".join(pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        data = head + file.getvalue() + pickle.dumps([], protocol=2)
    refused(data, words)


def test_names_with_control_characters_of_the_terminal(refused):
    refused(foreign({"\x1b[2J\x1b[31m": torch.zeros(1), "a\nerror: b": torch.zeros(1)}), "another network")


@pytest.mark.parametrize(
    "make",
    [
        lambda w: w.expand(2, *w.shape),
        lambda w: w.to_sparse(),
        lambda w: w.to(torch.complex64),
        lambda w: w.to("meta"),
        lambda w: (w * 100).to(torch.int32),
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
        lambda w: w[:1],
        lambda w: w * float("nan"),
        lambda w: w.double() * 1e300,
        lambda w: torch.where(w == w.max(), -float("inf"), w),
    ],
    ids=["expanded", "sparse", "complex", "meta", "int", "quantised", "other shape", "NaN", "too large", "infinite"],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_invalid_weights(refused, make):
    changed_weights = weights()
    changed_weights["s2.b1.f.a.weight"] = make(changed_weights["s2.b1.f.a.weight"])
    refused(foreign({"model": changed_weights}))


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return buffer.getvalue()


OTHER_FILES = {
    "gzip": (gzip.compress(b"x"), "gunzip"),
    "web page": (b"<!DOCTYPE html><html>Sign in to download</html>", "web page"),
    "pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "index of shards": (b'{"metadata": {}, "weight_map": {"w": "1.safetensors"}}', "several files"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
    "TorchScript": (zipped("a/data.pkl", "a/code/a.py", "a/constants.pkl"), "TorchScript"),
    "zipped checkpoint": (zipped("c.pt"), "unzip"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize(("data", "words"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_files_of_other_programs_are_refused_by_what_they_are(refused, data, words):
    refused(data, words)


NO_CHECKPOINTS = {
    "text": b"a text file\n" * 100,
    "zeros": bytes(10_000),
    "noise": random.Random(0).randbytes(10_000),
    "zip": (lambda b: (zipfile.ZipFile(b, "w").close(), b.getvalue())[1])(io.BytesIO()),
    "tar": tarred(),
    "number": foreign(7),
    "list": foreign([1, 2]),
    "no weights": foreign({"epoch": 3}),
    "empty dictionary": foreign({}),
    "script": foreign("import os"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_files_that_are_not_checkpoints(refused, name):
    refused(NO_CHECKPOINTS[name])


def test_a_directory_a_socket_and_a_device(tmp_path, monkeypatch, tally):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")  # a relative name: the full path may be too long for a socket
    for path in (tmp_path, tmp_path / "socket", "/dev/null"):
        with pytest.raises(CheckpointError, match="not a file"):
            read_checkpoint(path)
        tally("refused")
    for path in (tmp_path / ("x" * 300), tmp_path / "c.pt" / "below"):
        with pytest.raises(CheckpointError, match=str(path)):
            read_checkpoint(path)
        tally("refused")


def test_truncated_at_50_places(refused):
    data = own()
    rng = random.Random(1)
    for end in [1, 2, 4, 30, 60, len(data) - 1, len(data) - 71, *rng.sample(range(100, len(data)), 43)]:
        refused(data[:end])


@pytest.mark.parametrize("make", [own, lambda: foreign(weights())], ids=["ours", "foreign"])
def test_one_bit_flipped_at_200_places(refused, tmp_path, tally, make):
    """Half of the places are anywhere, and half in the directory and the pickle, where most bits have a meaning."""
    data = make()
    rng = random.Random(2)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        offset = next(i.header_offset for i in archive.infolist() if i.filename.endswith("data.pkl"))
        directory = archive.start_dir
    places = rng.sample(range(len(data)), 100) + rng.sample(range(directory, len(data)), 60)
    places += rng.sample(range(offset, offset + 2000), 40)
    model, expected, loaded = build_model(CFG), weights(), 0
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        (tmp_path / "f.pt").write_bytes(flipped)
        try:
            load_weights(model, tmp_path / "f.pt")
        except CheckpointError:
            refused(bytes(flipped))
        else:  # a bit without a meaning, such as one in the space between two parts
            assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
            tally("survived")
            loaded += place < len(data) - 71
    assert make is not own or loaded == 0  # the checksum covers everything but the word "sha256:"


def channels_last(weights):
    return {k: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in weights.items()}


def views_of_one_tensor(weights):
    """Return the weights as views of one tensor, whose data is in the file once."""
    parts = torch.cat([v.flatten() for v in weights.values()]).split([v.numel() for v in weights.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(weights.items(), parts, strict=True)}


UNUSUAL_FORMS = {
    "module twice": (lambda w: foreign({"net": {f"module.module.{k}": v for k, v in w.items()}}), 0),
    "float16": (lambda w: foreign({"model": {k: v.half() for k, v in w.items()}}), 1e-3),
    "bfloat16": (lambda w: foreign({"model": {k: v.bfloat16() for k, v in w.items()}}), 1e-2),
    "float64": (lambda w: foreign({"model": {k: v.double() for k, v in w.items()}}), 0),
    "extra entries": (lambda w: foreign({"state_dict": w, "epoch": 3, "extra": [1, {"a": "b"}]}), 0),
    "before torch 1.6": (legacy, 0),
    "parameters": (lambda w: foreign({k: torch.nn.Parameter(v) for k, v in w.items()}), 0),
    "channels last": (lambda w: foreign(channels_last(w)), 0),
    "parameters with attributes": (lambda w: foreign({k: parameter_with_a_note(v) for k, v in w.items()}), 0),
    "float8": (lambda w: foreign({"model": {k: v.to(torch.float8_e4m3fn) for k, v in w.items()}}), 0.1),
    "settings called model": (lambda w: foreign({"model": {"depth": 8}, "model_state_dict": w}), 0),
    "views of one tensor": (lambda w: foreign(views_of_one_tensor(w)), 0),
}


@pytest.mark.parametrize(("make", "tolerance"), UNUSUAL_FORMS.values(), ids=UNUSUAL_FORMS)
def test_unusual_forms_are_loaded_correctly(tmp_path, tally, make, tolerance):
    (tmp_path / "c.pt").write_bytes(make(weights(seed=5)))
    model = load_weights(build_model(CFG), tmp_path / "c.pt")
    for name, value in weights(seed=5).items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=tolerance, rtol=tolerance)
        assert model.state_dict()[name].dtype == torch.float32
    tally("survived")


def test_another_network_and_duplicate_names(refused):
    deeper = build_model(load_cfg(None, [*TINY, "ISON.DEPTH", 14])).state_dict()
    refused(foreign({"model": deeper}), "another network", "unexpected")
    refused(foreign({**weights(), **{f"module.{k}": v for k, v in weights().items()}}), "twice")


def parameter_with_a_note(value):
    parameter = torch.nn.Parameter(value)
    parameter.note = "x"
    return parameter


BESIDE = {
    "numpy scalar": (np.float64(3.5), "scalar"),
    "Namespace": (argparse.Namespace(lr=0.1), "argparse.Namespace"),
    "path": (pathlib.Path("runs"), "pathlib"),
    "Counter": (Counter("ab"), "Counter"),
    "defaultdict": (defaultdict(list, a=[1]), "defaultdict"),
    "date": (datetime.date(2020, 1, 1), "date"),
    "function": (os.path.join, "join"),
    "class": ({"act": torch.nn.ReLU}, "ReLU"),
    "class as a key": ({torch.nn.ReLU: 1}, "ReLU"),
    "tuple as a key": ({(1, 2): 3}, "tuple"),
    "set, and bytes": ([{1}, b"x"], "set"),
    "module": (torch.nn.Linear(2, 2), "Linear"),
    "sparse": (torch.eye(2).to_sparse(), "sparse"),
    "conjugate": (torch.ones(2, dtype=torch.complex64).conj(), "conjugate"),
}


@pytest.mark.parametrize("form", [foreign, legacy])
@pytest.mark.parametrize(("value", "word"), BESIDE.values(), ids=BESIDE)
def test_objects_beside_the_weights_are_ignored(tmp_path, caplog, tally, form, value, word):
    """All weights are loaded, one warning names the ignored objects, and nothing that the file names is called."""
    ran = Runs(os.mkdir, str(tmp_path / "ran"))
    (tmp_path / "c.pt").write_bytes(form({"state_dict": weights(seed=5), "epoch": 3, "args": value, "run": ran}))
    model = load_weights(build_model(CFG), tmp_path / "c.pt")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights(seed=5).items())
    assert not (tmp_path / "ran").exists()
    (line,) = [record.getMessage() for record in caplog.records]
    assert word in line
    assert "mkdir" in line
    tally("survived")


@pytest.mark.parametrize("key", ["state_dict", None])
def test_counters_among_the_weights_are_ignored(tmp_path, caplog, key):
    state = {**weights(seed=5), "epoch": 3, "arch": "iso", "args": {"lr": 0.1}}
    (tmp_path / "c.pt").write_bytes(foreign({key: state} if key else state))
    model = load_weights(build_model(CFG), tmp_path / "c.pt")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights(seed=5).items())
    (line,) = [record.getMessage() for record in caplog.records]
    assert "epoch, arch, args" in line


def test_the_averaged_weights_of_torch_are_loaded(tmp_path, caplog):
    averaged = torch.optim.swa_utils.AveragedModel(build_model(CFG))
    for value in (1.0, 3.0):
        averaged.update_parameters(build_model(CFG).apply(lambda module, value=value: fill(module, value)))
    torch.save(averaged.state_dict(), tmp_path / "c.pt")
    model = load_weights(build_model(CFG), tmp_path / "c.pt")
    assert {value.unique().item() for value in model.parameters()} == {2.0}
    assert "n_averaged" in caplog.text


def fill(module, value):
    for parameter in module.parameters(recurse=False):
        torch.nn.init.constant_(parameter, value)


def test_plain_torch_reads_our_checkpoints(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"model": weights()})
    assert torch.equal(torch.load(tmp_path / "c.pt")["model"]["stem.conv.weight"], weights()["stem.conv.weight"])
