"""Checkpoints from strangers, broken or made to harm: loaded right, or refused in one sentence and never run."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib

import pytest
import torch

import test as test_script
from conftest import REPO, TINY
from isonet import build_model, load_cfg, load_weights
from isonet.archive import pack
from isonet.checkpoint import read_checkpoint, save_checkpoint
from isonet.errors import CheckpointError, run_cli

CFG = load_cfg(None, TINY)


def weights(seed=0):
    torch.manual_seed(seed)
    return build_model(CFG).state_dict()


def own() -> bytes:
    """A checkpoint as this project writes it."""
    return pack({"model": weights(), "config": CFG.dump(), "classes": [str(i) for i in range(10)]})


def foreign(content: object) -> bytes:
    """What plain torch.save makes of it: no checksum of ours."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content: object) -> bytes:
    """What torch saved before version 1.6."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def changed(data: bytes, **parts: bytes | None) -> bytes:
    """The archive ``data`` with the ends of some names given other contents."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = parts.get(entry.filename.rpartition("/")[2].replace(".", "_"), old.read(entry.filename))
            new.writestr(entry.filename, content)
    return out.getvalue()


@pytest.fixture
def refused(tmp_path, capsys, tally):
    """Refused by the library with the model unchanged, and by test.py with one line and exit code 2."""

    def check(data: bytes, *words: str):
        path = tmp_path / "c.pt"
        path.write_bytes(data)
        model = build_model(CFG)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(CheckpointError) as error:
            load_weights(model, path)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert str(path) in str(error.value)
        for word in words:
            assert word in str(error.value), error.value
        capsys.readouterr()
        args = ["--ckpt", str(path), "--cfg", str(REPO / "configs/digits_ISO20.yaml"), *map(str, TINY)]
        assert run_cli(test_script.main, test_script.parse_args(args)) == 2
        found = capsys.readouterr()
        (line,) = found.err.splitlines()
        assert line.startswith(f"error: {path}: ")
        assert len(line) < 700
        assert line.isprintable()
        assert "Traceback" not in found.out
        tally("refused")

    return check


class Runs:
    """Pickled, it is a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["top", "inside", "key"])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "protocol 5"])
def test_pickles_that_would_run_code(refused, tmp_path, where, form):
    bomb = Runs(os.mkdir, str(tmp_path / "ran"))
    content = {"top": bomb, "inside": {"model": {**weights(), "x": bomb}}, "key": {"model": {(bomb,): 1}}}[where]
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


def test_a_bomb_of_zeros(refused):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(own())) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            big = entry.filename.endswith("data/0")
            new.writestr(entry.filename, bytes(300 << 20) if big else old.read(entry.filename))
    assert len(out.getvalue()) < 1 << 20
    refused(out.getvalue(), "packed to more than its size")


def test_parts_that_overlap(refused):
    """A thousand entries of the directory which are one part of the archive."""
    data = foreign({"w": torch.zeros(100_000)})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        start = archive.start_dir
    big = max(infos, key=lambda info: info.file_size)
    out = io.BytesIO(data[:start])
    with zipfile.ZipFile(out, "a") as archive:
        archive.start_dir = start
        out.seek(start)
        for i in range(1000):
            twin = zipfile.ZipInfo(f"archive/data/{i}")
            for name in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(twin, name, getattr(big, name))
            archive.filelist.append(twin)
        archive._didModify = True
    refused(out.getvalue())


@pytest.mark.parametrize("name", ["../../outside", "/etc/outside", "archive\\..\\outside"])
def test_paths_that_lead_out_of_the_archive(refused, tmp_path, name):
    out = io.BytesIO(foreign(weights()))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(name, b"x")
    refused(out.getvalue(), "paths that lead out of it")
    assert not list(tmp_path.rglob("outside*"))


def test_two_parts_of_one_name(refused):
    out = io.BytesIO(foreign(weights()))
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"x")
    refused(out.getvalue(), "two parts of one name")


def test_tensors_longer_than_their_data(refused):
    """Which versions of torch before the check that it has now read on beyond the end of, into other memory."""
    data = foreign({"w": torch.arange(1000.0)})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickled = archive.read("archive/data.pkl")
    longer = pickled.replace(b"M\xe8\x03", b"J" + (50_000_000).to_bytes(4, "little"))
    assert longer != pickled
    refused(changed(data, data_pkl=longer), "not as long as it says")


def local(name: bytes, data: bytes) -> bytes:
    head = struct.pack("<IHHHHHIIIHH", 0x04034B50, 0, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
    return head + name + data


def central(name: bytes, data: bytes, offset: int) -> bytes:
    sizes = (zlib.crc32(data), len(data), len(data))
    return (
        struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 0, 0, 0, 0, 33, *sizes, len(name), 0, 0, 0, 0, 0, offset)
        + name
    )


def directory(parts, offsets) -> bytes:
    return b"".join(central(name, data, offset) for (name, data), offset in zip(parts, offsets, strict=True))


def laid_out(parts, start=0) -> tuple[bytes, list[int]]:
    body, offsets = b"", []
    for name, data in parts:
        offsets.append(start + len(body))
        body += local(name, data)
    return body, offsets


def end(count, size, offset) -> bytes:
    return struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, size, offset, 0)


def parts_of(storage: bytes, claimed: int, key="0"):
    """An archive's parts, whose pickle claims ``claimed`` float32 numbers in storage ``key``."""
    text = lambda t: b"X" + struct.pack("<I", len(t)) + t.encode()  # noqa: E731
    number = lambda n: b"J" + struct.pack("<i", n)  # noqa: E731
    pid = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(claimed) + b"tQ"
    shape = b"(" + number(claimed) + b"t(" + number(1) + b"t\x89ccollections\nOrderedDict\n)R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + number(0) + shape + b"tR"
    pickled = b"\x80\x02}" + text("w") + tensor + b"s."
    return [(b"a/data.pkl", pickled), (f"a/data/{key}".encode(), storage), (b"a/version", b"3\n")]


FOUR = struct.pack("<f", 1.0)
GOOD, EVIL = parts_of(FOUR, 1), parts_of(FOUR, 50_000_000)


def one_directory(parts) -> bytes:
    body, offsets = laid_out(parts)
    entries = directory(parts, offsets)
    return body + entries + end(len(parts), len(entries), len(body))


def two_directories() -> bytes:
    """Python's reader finds the one before the end, torch's the one at the place that the end names."""
    evil, evil_offsets = laid_out(EVIL)
    first = directory(EVIL, evil_offsets)
    start = len(evil) + len(first) + len(first)
    good, good_offsets = laid_out(GOOD, start)
    shift = start + len(good) - len(evil)  # which Python takes for something put before the archive
    second = directory(GOOD, [max(0, offset - shift) for offset in good_offsets])
    return evil + first + bytes(len(first)) + good + second + end(len(GOOD), len(second), len(evil))


def two_ends_of_64_bits() -> bytes:
    out = b""
    records = []
    for parts in (EVIL, GOOD):
        body, offsets = laid_out(parts, len(out))
        entries = directory(parts, offsets)
        out += body
        place = len(out)
        out += entries
        records.append(len(out))
        out += struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 3, 3, len(entries), place)
    out += struct.pack("<IIQI", 0x07064B50, 0, records[0], 1)
    return out + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


def test_a_crafted_archive_that_is_right_is_read(tmp_path, tally):
    (tmp_path / "c.pt").write_bytes(one_directory(GOOD))
    assert read_checkpoint(tmp_path / "c.pt")["w"].tolist() == [1.0]
    tally("survived")


@pytest.mark.parametrize(
    "data",
    [
        one_directory(EVIL),
        one_directory([*GOOD, (b"a/DATA.PKL", EVIL[0][1])]),
        one_directory([(b"a/DATA.PKL", EVIL[0][1]), *GOOD]),
        one_directory([*parts_of(bytes(4096), 1024, "x"), (b"a/data/X", FOUR)]),
        two_directories(),
        two_ends_of_64_bits(),
        b"x" * 100 + one_directory(GOOD),
        b"PK" + one_directory(GOOD),
        one_directory(GOOD) + one_directory(GOOD)[-22:],
    ],
    ids=["too long", "case last", "case first", "case of data", "two directories", "two 64-bit ends", "put before",
         "put before as zip", "two ends"],
)  # fmt: skip
def test_archives_that_two_readers_read_differently(refused, data):
    """Most of these crash torch 2.6, which looks for names in any case and for the directory where the end says."""
    refused(data)


def test_the_old_format_without_its_tensor_data(refused):
    """Which torch gives memory that nobody has written."""
    data = legacy({"w": torch.arange(1000.0)})
    numbers = data[-4008:]  # their count, and 1000 of 4 bytes
    last = data[:-4008].rindex(b"\x80\x02]")  # the pickle of the keys
    no_keys = pickle.dumps([], protocol=2)
    refused(data[:-4000])
    refused(data[:last] + no_keys)
    refused(data[:last] + no_keys + numbers)
    refused(data[:-4008] + (999).to_bytes(8, "little") + numbers[8:-4])


def test_pickles_that_would_take_all_memory_or_time(refused):
    for pickled in (
        b"\x80\x05\x96" + (60 << 30).to_bytes(8, "little") + b".",  # a byte array of 60 GB
        b"\x80\x02" + b"ca\nb\n" * 300_000 + b".",  # 300,000 classes
        b"\x80\x02" + b"ctorch\nFloatStorage\n" * 100_000,
    ):
        start = time.monotonic()
        refused(changed(foreign(weights()), data_pkl=pickled))
        assert time.monotonic() - start < 20


def test_tensors_with_more_to_them(refused):
    odd = torch.nn.Parameter(torch.ones(2, 2))
    odd.detach = "x"
    refused(foreign({"w": odd}), "no plain weights need")
    refused(foreign({"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}), "no plain weights need")


def test_a_memo_index_that_would_reserve_all_memory(refused):
    bomb = b"\x80\x02}r" + (2**31 - 1).to_bytes(4, "little") + b"."
    refused(changed(foreign(weights()), data_pkl=bomb))


def doubled(times=60) -> bytes:
    """The opcodes of a tuple of tuples: small in memory, and without end once hashed or written out."""
    return b"(X\x01\x00\x00\x00xt" + b"q\x01h\x01\x86" * times


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("place", ["key", "value", "storage"])
def test_tuples_that_grow_without_end(refused, form, place):
    content = {
        "key": b"}" + doubled() + b"K\x01s.",
        "value": b"}X\x05\x00\x00\x00model}X\x01\x00\x00\x00w" + doubled() + b"ss.",
        "storage": b"}X\x01\x00\x00\x00w(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        + doubled() + b"X\x03\x00\x00\x00cpuK\x01tQs.",
    }[place]  # fmt: skip
    if form == "zip":
        data = changed(foreign(weights()), data_pkl=b"\x80\x02" + content)
    else:
        head = b"".join(pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        data = head + b"\x80\x02" + content + pickle.dumps([], protocol=2)
    refused(data)


def test_names_that_would_command_the_terminal(refused):
    refused(foreign({"\x1b[2J\x1b[31m": torch.zeros(1), "a\nerror: b": torch.zeros(1)}), "another network")


@pytest.mark.parametrize(
    "make",
    [
        lambda w: w.expand(10**6, *w.shape),
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
def test_weights_that_are_none(refused, make):
    spoilt = weights()
    spoilt["s2.b1.f.a.weight"] = make(spoilt["s2.b1.f.a.weight"])
    refused(foreign({"model": spoilt}))


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


NO_CHECKPOINTS = {
    "empty": b"",
    "text": b"a text file\n" * 100,
    "html": b"<!DOCTYPE html><html>Sign in to download</html>",
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
def test_files_that_are_no_checkpoints(refused, name):
    refused(NO_CHECKPOINTS[name])


def test_a_directory_a_pipe_and_a_device(tmp_path, tally):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", tmp_path / ("x" * 300), tmp_path / "c.pt" / "below"):
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
        command = [sys.executable, str(REPO / "test.py"), "--ckpt", str(path)]
        if path == tmp_path / "pipe":  # which would wait for ever, opened
            result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
        tally("refused")


def test_truncated_at_50_places(refused):
    data = own()
    rng = random.Random(1)
    for end in [1, 2, 4, 30, 60, len(data) - 1, len(data) - 71, *rng.sample(range(100, len(data)), 43)]:
        refused(data[:end])


@pytest.mark.parametrize("make", [own, lambda: foreign(weights())], ids=["ours", "foreign"])
def test_one_bit_flipped_at_200_places(refused, tmp_path, tally, make):
    """Half of the places anywhere; half in the directory and the pickle, where a bit means most."""
    data = make()
    rng = random.Random(2)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        offset = next(i.header_offset for i in archive.infolist() if i.filename.endswith("data.pkl"))
        directory = archive.start_dir
    places = rng.sample(range(len(data)), 100) + rng.sample(range(directory, len(data)), 60)
    places += rng.sample(range(offset, offset + 2000), 40)
    loaded = 0
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        (tmp_path / "f.pt").write_bytes(flipped)
        try:
            model = load_weights(build_model(CFG), tmp_path / "f.pt")
        except CheckpointError:
            refused(bytes(flipped))
        else:  # a bit that means nothing, such as one of the space between two parts
            assert all(torch.equal(value, weights()[name]) for name, value in model.state_dict().items())
            tally("survived")
            loaded += place < len(data) - 71
    assert make is not own or loaded == 0  # the checksum covers everything but the word "sha256:"


def channels_last(weights):
    return {k: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in weights.items()}


ODD_FORMS = {
    "module twice": (lambda w: foreign({"net": {f"module.module.{k}": v for k, v in w.items()}}), 0),
    "float16": (lambda w: foreign({"model": {k: v.half() for k, v in w.items()}}), 1e-3),
    "bfloat16": (lambda w: foreign({"model": {k: v.bfloat16() for k, v in w.items()}}), 1e-2),
    "float64": (lambda w: foreign({"model": {k: v.double() for k, v in w.items()}}), 0),
    "extra entries": (lambda w: foreign({"state_dict": w, "epoch": 3, "extra": [1, {"a": "b"}]}), 0),
    "before torch 1.6": (legacy, 0),
    "parameters": (lambda w: foreign({k: torch.nn.Parameter(v) for k, v in w.items()}), 0),
    "channels last": (lambda w: foreign(channels_last(w)), 0),
}


@pytest.mark.parametrize(("make", "tolerance"), ODD_FORMS.values(), ids=ODD_FORMS)
def test_odd_forms_that_are_loaded_right(tmp_path, tally, make, tolerance):
    (tmp_path / "c.pt").write_bytes(make(weights(seed=5)))
    model = load_weights(build_model(CFG), tmp_path / "c.pt")
    for name, value in weights(seed=5).items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=tolerance, rtol=tolerance)
        assert model.state_dict()[name].dtype == torch.float32
    tally("survived")


def test_another_network_and_names_given_twice(refused):
    deeper = build_model(load_cfg(None, [*TINY, "ISON.DEPTH", 14])).state_dict()
    refused(foreign({"model": deeper}), "another network", "unexpected")
    refused(foreign({**weights(), **{f"module.{k}": v for k, v in weights().items()}}), "twice")


def test_a_checkpoint_of_ours_is_one_for_plain_torch_too(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"model": weights()})
    assert torch.equal(torch.load(tmp_path / "c.pt")["model"]["stem.conv.weight"], weights()["stem.conv.weight"])
