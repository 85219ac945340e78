"""A dictionary of tensors as the bytes of a file, with a checksum, and back without trusting them.

The file is a zip archive as ``torch.save`` makes it; torch reads it without this module. Its zip
comment holds the SHA-256 of all bytes before it, so that damage anywhere is found.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any, ClassVar

import torch

_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64
_ITEM_BYTES = {
    "UntypedStorage": 1, "ByteStorage": 1, "CharStorage": 1, "BoolStorage": 1, "ShortStorage": 2, "HalfStorage": 2,
    "BFloat16Storage": 2, "IntStorage": 4, "FloatStorage": 4, "LongStorage": 8, "DoubleStorage": 8,
    "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip


_TOO_SHORT = "is damaged: its tensor data {!r:.80} is not as long as it says"


class ArchiveError(Exception):
    """Bytes that are no archive, a damaged one, or one that holds what no checkpoint of weights holds."""


def pack(state: dict[str, Any]) -> bytes:
    """``state`` as bytes with their checksum."""
    buffer = io.BytesIO()  # torch hides what the system says of a full disk, so it never sees one
    torch.save(state, buffer)
    data = buffer.getbuffer()
    comment = _MARK + hashlib.sha256(data).hexdigest().encode()
    return b"".join([data[:-2], len(comment).to_bytes(2, "little"), comment])  # the last field: the comment's length


def unpack(data: bytes) -> Any:
    """What lies in ``data``, on the CPU: tensors, numbers, text and containers of them. Runs nothing from it.

    Raises ``ArchiveError``, whose message ends a sentence that begins with the file's name.
    """
    try:
        if data[:2] == b"PK":
            _check_end(data)
            _check_sum(data)
            _check_archive(data)
        else:
            _check_old_format(data)
    except ArchiveError:
        raise
    except Exception as error:  # zipfile and pickle raise nearly every kind for a damaged file
        raise ArchiveError(f"is damaged, or not a checkpoint ({_first_line(error)})") from None
    try:
        with warnings.catch_warnings():  # torch tells of odd pickles before it refuses them
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # and so does torch
        raise ArchiveError(
            f"is not a checkpoint that can be read safely, as plain weights ({_first_line(error)})"
        ) from None


def _check_end(data: bytes) -> None:
    """Check the records at the end, which say where the directory is.

    They must account for every byte, so that Python's reader, with which we check, and torch's find the same directory.
    """
    end = data.rfind(b"PK\x05\x06")
    if end < 0 or len(data) < end + 22:
        raise ArchiveError("is damaged: its end is missing")
    size, offset, comment = struct.unpack_from("<LLH", data, end + 12)
    start = end
    if data[end - 20 : end - 16] == b"PK\x06\x07":  # of an archive beyond 4 GB: the numbers are 64 bits wide
        start = struct.unpack_from("<Q", data, end - 12)[0]
        if start != end - 76 or data[start : start + 4] != b"PK\x06\x06":
            raise ArchiveError("is refused: its end tells of another directory")
        size, offset = struct.unpack_from("<QQ", data, start + 40)
    if offset + size != start or end + 22 + comment != len(data):
        raise ArchiveError("is damaged: a part of it is missing, or something was added")


def _check_sum(data: bytes) -> None:
    """Compare with the checksum, if there is one."""
    comment = data[-_COMMENT:]
    if not comment.startswith(_MARK):
        return
    digest = hashlib.sha256(memoryview(data)[: -_COMMENT - 2])
    digest.update(b"\0\0")  # of an archive without comment
    if digest.hexdigest().encode() != comment[len(_MARK) :]:
        raise ArchiveError("is damaged: its checksum does not match")


def _check_archive(data: bytes) -> None:
    """Check an archive, whoever made it, before torch reads it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        _check_entries(entries, len(data))
        if bad := archive.testzip():
            raise ArchiveError(f"is damaged: the checksum of its part {bad!r:.80} does not match")
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ArchiveError("is a zip archive and not a checkpoint")
        sizes = {entry.filename: entry.file_size for entry in entries}
        _check_storages(archive.read(pickles[0]), pickles[0].filename.removesuffix("data.pkl"), sizes)


def _check_old_format(data: bytes) -> None:
    """Check a file from before torch 1.6: five pickles (format, version, system, content, keys), then bare numbers."""
    if data[:1] != b"\x80":
        raise ArchiveError("is not a checkpoint")
    file = io.BytesIO(data)
    scans = [_StorageScan(file) for _ in range(5)]
    keys = [scan.load() for scan in scans][-1]
    sizes = {key: (kind, count) for kind, key, count in scans[3].storages}
    if set(keys) != set(sizes):
        raise ArchiveError("is damaged: it does not hold the tensor data that it names")
    for key in keys:
        kind, count = sizes[key]
        if int.from_bytes(file.read(8), "little") != count:
            raise ArchiveError(_TOO_SHORT.format(key))
        file.seek(count * _ITEM_BYTES[kind], io.SEEK_CUR)
    if file.tell() != len(data):
        raise ArchiveError("is damaged: its end is missing, or something was added to it")


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    names = [entry.filename.lower() for entry in entries]  # a reader may compare them in any case
    if any(name.startswith("/") or "\\" in name or ".." in name.split("/") for name in names):
        raise ArchiveError("is refused: it holds paths that lead out of it")
    if len(set(names)) < len(names):
        raise ArchiveError("is refused: it holds two parts of one name")
    # torch stores without compression, so the parts of its archives are together smaller than the file
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
        raise ArchiveError("is refused: it is packed to more than its size, which weights never are")


def _check_storages(pickled: bytes, folder: str, sizes: dict[str, int]) -> None:
    """Check that every storage has the length that the pickle says."""
    scan = _StorageScan(io.BytesIO(pickled))
    scan.load()
    for kind, key, count in scan.storages:
        if kind not in _ITEM_BYTES or sizes.get(f"{folder}data/{key}") != count * _ITEM_BYTES[kind]:
            raise ArchiveError(_TOO_SHORT.format(key))


class _Inert(dict):
    """Stands for what a pickle would make, and does nothing."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None:
        pass


class _Tuple(tuple):
    """A tuple of a pickle, which cannot be a key of a dictionary."""

    def __hash__(self) -> int:
        raise ArchiveError("is refused: it holds a tuple as a key, which no plain weights need")


class _Opcodes(dict):
    """What a pickle may ask of the unpickler; nothing else is in any checkpoint of weights."""

    def __missing__(self, code: int) -> None:
        raise ArchiveError(f"is refused: it holds more than plain weights (pickle code {code})")


def _make_tuple(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_unhashable(unpickler: Any) -> None:
        load(unpickler)
        unpickler.stack[-1] = _Tuple(unpickler.stack[-1])

    return load_unhashable


# fmt: off
_OPCODES = [
    "PROTO", "STOP", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "MARK", "POP", "NONE", "NEWTRUE", "NEWFALSE", "BININT",
    "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE", "BINPERSID", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT",
]
# fmt: on
_CLASSES = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch.storage.UntypedStorage",
    *(f"torch.{kind}" for kind in _ITEM_BYTES),
    *(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)),
}  # fmt: skip
_STUBS = {name: type(name.rpartition(".")[2], (_Inert,), {}) for name in _CLASSES}


# The Python form of the unpickler, in which every opcode can be replaced; its memory is bounded by the file's size
class _StorageScan(pickle._Unpickler):
    """Reads a pickle without making anything of it, and notes the storages that it asks for."""

    memo: dict[int, Any]
    dispatch: ClassVar = _Opcodes(
        {
            **{code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _OPCODES)},
            **{
                code[0]: _make_tuple(pickle._Unpickler.dispatch[code[0]])
                for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
            },
        }
    )

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.size = file.getbuffer().nbytes
        self.storages: list[tuple[str, str, int]] = []

    def load(self) -> Any:
        content = super().load()
        if max(self.memo, default=0) > self.size:  # no pickler: each object takes more than a byte
            raise ArchiveError("is refused: it numbers more objects than it can hold")
        return content

    def find_class(self, module: str, name: str) -> type[_Inert]:
        if stub := _STUBS.get(f"{module}.{name}"):
            return stub
        raise ArchiveError(f"is refused: it would call {f'{module}.{name}'!r:.80}, which no plain weights need")

    def persistent_load(self, pid: Any) -> _Inert:
        kind, key, count = pid[1], pid[2], pid[4]
        if not isinstance(key, str) or type(count) is not int or pid[5:] not in ((), (None,)):
            raise ArchiveError("is damaged: it names its tensor data by something else than text and a number")
        self.storages.append((kind.__name__, key, count))
        return _Inert()


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
