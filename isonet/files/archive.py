"""Conversion of a dictionary of tensors to bytes with a checksum, and back without trusting the bytes.

The file is a zip archive as ``torch.save`` writes it, and torch can load it without this module. The zip comment
contains the SHA-256 of all bytes before it, which detects any damage.
"""

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


class ArchiveError(Exception):
    """Raised for bytes that are not an archive, are damaged, or contain more than a checkpoint of weights does.

    The message is the end of a sentence that begins with the name of the file.
    """


def pack(state: dict[str, Any]) -> bytes:
    """Return ``state`` as bytes with their checksum."""
    buffer = io.BytesIO()  # torch would hide the system's error for a full disk, so it never writes to a disk
    torch.save(state, buffer)
    data = buffer.getbuffer()
    comment = _MARK + hashlib.sha256(data).hexdigest().encode()
    return b"".join([data[:-2], len(comment).to_bytes(2, "little"), comment])  # the last field: the comment's length


def unpack(data: bytes) -> Any:
    """Return the content of ``data`` on the CPU: tensors, numbers, text and containers of them. Nothing is executed.

    Raises ``ArchiveError``.
    """
    try:
        if data[:2] == b"PK":
            _check_end(data)
            _check_sum(data)
            _check_archive(data)
        else:
            _check_old_format(data)
        with warnings.catch_warnings(action="ignore"):  # torch warns about unusual pickles before it refuses them
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ArchiveError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise nearly every kind of exception for a damaged file
        why = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise ArchiveError(f"is damaged, or not a checkpoint of plain weights ({why})") from None


def _check_end(data: bytes) -> None:
    """Check the records at the end of the archive, which contain the position of its directory.

    They must account for every byte, so that Python's reader, which checks the archive, and torch's reader use the same
    directory.
    """
    end = data.rfind(b"PK\x05\x06")
    if end < 0 or len(data) < end + 22:
        raise ArchiveError("is damaged: its end is missing")
    size, offset, comment = struct.unpack_from("<LLH", data, end + 12)
    start = end
    if data[end - 20 : end - 16] == b"PK\x06\x07":  # an archive beyond 4 GB, whose numbers are 64 bits wide
        start = struct.unpack_from("<Q", data, end - 12)[0]
        if start != end - 76 or data[start : start + 4] != b"PK\x06\x06":
            raise ArchiveError("is refused: its end points to another directory")
        size, offset = struct.unpack_from("<QQ", data, start + 40)
    if offset + size != start or end + 22 + comment != len(data):
        raise ArchiveError("is damaged: a part of it is missing, or something was added")


def _check_sum(data: bytes) -> None:
    """Compare ``data`` with its checksum, if it has one."""
    comment = data[-_COMMENT:]
    if not comment.startswith(_MARK):
        return
    digest = hashlib.sha256(memoryview(data)[: -_COMMENT - 2])
    digest.update(b"\0\0")  # the length of the comment before the checksum was added
    if digest.hexdigest().encode() != comment[len(_MARK) :]:
        raise ArchiveError("is damaged: its checksum does not match")


def _check_archive(data: bytes) -> None:
    """Check a zip archive, which any program may have written, before torch reads it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        _check_entries(entries, len(data))
        if bad := archive.testzip():
            raise ArchiveError(f"is damaged: the checksum of its part {bad!r:.80} does not match")
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ArchiveError("is a zip archive and not a checkpoint")
        sizes = {entry.filename: entry.file_size for entry in entries}
        check_storages(archive.read(pickles[0]), pickles[0].filename.removesuffix("data.pkl"), sizes)


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    names = [entry.filename.lower() for entry in entries]  # a reader may ignore case
    if any(name.startswith("/") or "\\" in name or ".." in name.split("/") for name in names):
        raise ArchiveError("is refused: it has paths that lead out of it")
    if len(set(names)) < len(names):
        raise ArchiveError("is refused: it has two parts of one name")
    # torch does not compress, so the sum of the parts of its archives is smaller than the file
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
        raise ArchiveError("is refused: it is packed to more than its size, which weights never are")


def check_storages(pickled: bytes, folder: str, sizes: dict[str, int]) -> None:
    """Check that the tensor data in an archive has the lengths that its pickle states.

    folder: the archive's folder, with a slash at the end.
    sizes: the number of bytes of each part of the archive, by name.

    Raises ``ArchiveError``.
    """
    scan = _StorageScan(io.BytesIO(pickled))
    scan.load()
    for kind, key, count in scan.storages:
        if kind not in _ITEM_BYTES or sizes.get(f"{folder}data/{key}") != count * _ITEM_BYTES[kind]:
            raise ArchiveError(f"is damaged: its tensor data {key!r:.80} is not as long as it says")


def _check_old_format(data: bytes) -> None:
    """Check a file from torch before 1.6: five pickles (format, version, system, content, keys), then plain numbers."""
    if data[:1] != b"\x80":
        raise ArchiveError("is not a checkpoint")
    file = io.BytesIO(data)
    scans = [_StorageScan(file) for _ in range(5)]
    keys = [scan.load() for scan in scans][-1]
    sizes = {key: (kind, count) for kind, key, count in scans[3].storages}
    if set(keys) != set(sizes):
        raise ArchiveError("is damaged: it does not have the tensor data that it names")
    for key in keys:
        kind, count = sizes[key]
        if int.from_bytes(file.read(8), "little") != count:
            raise ArchiveError(f"is damaged: its tensor data {key!r:.80} is not as long as it says")
        file.seek(count * _ITEM_BYTES[kind], io.SEEK_CUR)
    if file.tell() != len(data):
        raise ArchiveError("is damaged: its end is missing, or something was added to it")


class _Inert(dict):
    """Replaces any object that a pickle would create, and does nothing."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None:
        pass


class _Opcodes(dict):
    """The opcodes of checkpoints of weights, with the methods that execute them. All other opcodes are refused."""

    def __missing__(self, code: int) -> None:
        raise ArchiveError(f"is refused: it has more than plain weights (pickle code {code})")


def _as_list(make_tuple: Callable[[Any], None]) -> Callable[[Any], None]:
    """Make a tuple opcode create a list, which cannot be a key of a dictionary. Keys of plain weights are text."""

    def load(unpickler: Any) -> None:
        make_tuple(unpickler)
        unpickler.stack[-1] = list(unpickler.stack[-1])

    return load


# fmt: off
_OPCODES = [
    "PROTO", "STOP", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "MARK", "POP", "NONE", "NEWTRUE", "NEWFALSE", "BININT",
    "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE", "BINPERSID", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT",
]
_TUPLE_OPCODES = ["TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"]
# fmt: on
_CLASSES = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch.storage.UntypedStorage",
    *(f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter")),
    *(f"torch.{kind}" for kind in _ITEM_BYTES),
    *(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)),
}  # fmt: skip
_STUBS = {name: type(name.rpartition(".")[2], (_Inert,), {}) for name in _CLASSES}
_EXECUTE = pickle._Unpickler.dispatch


# This unpickler is written in Python, so every opcode can be replaced. The size of the file bounds its memory
class _StorageScan(pickle._Unpickler):
    """Reads a pickle without creating any of its objects, and lists the storages that it refers to."""

    memo: dict[int, Any]
    dispatch: ClassVar = _Opcodes(
        {code: _EXECUTE[code] for code in (getattr(pickle, name)[0] for name in _OPCODES)}
        | {code: _as_list(_EXECUTE[code]) for code in (getattr(pickle, name)[0] for name in _TUPLE_OPCODES)}
    )

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.size = file.getbuffer().nbytes
        self.storages: list[tuple[str, str, int]] = []  # kind, key, number of items

    def load(self) -> Any:
        content = super().load()
        if max(self.memo, default=0) > self.size:  # picklers count objects, each of which takes more than a byte
            raise ArchiveError("is refused: it numbers more objects than it can have")
        return content

    def find_class(self, module: str, name: str) -> type[_Inert]:
        if stub := _STUBS.get(f"{module}.{name}"):
            return stub
        raise ArchiveError(f"is refused: it would call {f'{module}.{name}'!r:.80}, which no plain weights need")

    def persistent_load(self, pid: Any) -> _Inert:
        _, kind, key, _, count, *view = pid
        if not isinstance(key, str) or type(count) is not int or view not in ([], [None]):
            raise ArchiveError("is damaged: it names its tensor data by something else than text and a number")
        self.storages.append((kind.__name__, key, count))
        return _Inert()
