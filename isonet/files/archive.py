"""Conversion of a dictionary of tensors to bytes with a checksum, and back without trusting the bytes.

The file is a zip archive as ``torch.save`` writes it, and torch can load it without this module. The zip comment
contains the SHA-256 of all bytes before it, which detects any damage.
"""

import hashlib
import io
import os
import struct
import zipfile
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch

from isonet.files.foreign import describe_archive, describe_file
from isonet.files.pickles import ArchiveError, PickleReader, refusal

_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64
_LONGEST_END = 22 + (1 << 16)  # bytes of the last record of an archive, with the longest comment
_CHUNK = 1 << 24  # bytes to read before they are hashed
_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # in the first pickle of a file from torch before 1.6


class _Hashed:
    """A file for ``torch.save`` that writes to ``file`` and computes the SHA-256 of the bytes at the same time.

    error: the first error of a write, or None. ``write`` does not raise it, because torch would hide the system's error
    for a full disk.
    """

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor) -> None:
        self.file, self.pool, self.sum = file, pool, hashlib.sha256()
        self.hashing: Future[None] | None = None
        self.error: BaseException | None = None

    def write(self, data: memoryview) -> int:
        try:
            if not self.error:
                hashing = self.pool.submit(self.sum.update, bytes(data))  # torch may release the memory of ``data``
                self.file.write(data)
                if self.hashing:  # at most two copies are in memory
                    self.hashing.result()
                self.hashing = hashing
        except BaseException as error:
            self.error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: ``write_archive`` has more to write."""


def write_archive(state: dict[str, Any], file: BinaryIO) -> None:
    """Write ``state`` with its checksum to an empty file. Raises ``OSError`` if the system cannot write it."""
    with ThreadPoolExecutor(1) as pool:
        hashed: Any = _Hashed(file, pool)
        torch.save(state, hashed)
    if hashed.error:
        raise hashed.error
    comment = _MARK + hashed.sum.hexdigest().encode()
    file.seek(-2, os.SEEK_END)  # the last field: the comment's length
    file.write(len(comment).to_bytes(2, "little") + comment)


def pack(state: dict[str, Any]) -> bytes:
    """Return ``state`` as bytes with their checksum."""
    buffer = io.BytesIO()
    write_archive(state, buffer)
    return buffer.getvalue()


def read_hashed(path: Path) -> tuple[io.BytesIO, str]:
    """Read a file, and return it with the SHA-256 that its checksum is compared with. Raises ``OSError``."""
    with path.open("rb") as file, ThreadPoolExecutor(1) as pool:
        content = io.BytesIO(bytes(os.fstat(file.fileno()).st_size))
        view, digest = content.getbuffer(), hashlib.sha256()
        end = max(0, len(view) - _COMMENT - 2)
        for start in range(0, len(view), _CHUNK):
            file.readinto(view[start : start + _CHUNK])
            pool.submit(digest.update, view[min(start, end) : min(start + _CHUNK, end)])
        pool.submit(digest.update, b"\0\0")  # the length of the comment before the checksum was added
    return content, digest.hexdigest()


def unpack(file: io.BytesIO, digest: str | None = None) -> Any:
    """Return the content of ``file`` on the CPU: tensors, numbers, text and containers of them. Nothing is executed.

    The tensors share the memory of ``file``. An ``Unread`` replaces each object of another kind. digest: the result of
    ``read_hashed``; None if the checksum does not matter. Raises ``ArchiveError``.
    """
    data = file.getbuffer()
    try:
        if data[:2] == b"PK":
            _check_end(data)
            checked = digest is not None and _check_sum(data, digest)
            return _read_archive(file, data, checked)
        if data[:1] == b"\x80":
            if _MAGIC not in bytes(data[:32]):
                raise refusal("it is a pickle that torch.save did not write", read='pickle.load(open(FILE, "rb"))')
            return _read_old_format(file, len(data))
    except ArchiveError:
        raise
    except Exception as error:  # zipfile and the unpickler raise nearly every kind of exception for a damaged file
        raise damage(error) from None
    raise ArchiveError(describe_file(bytes(data)))


def damage(error: Exception) -> ArchiveError:
    """Return the ``ArchiveError`` for a file whose reading raised ``error``."""
    why = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
    return ArchiveError(f"is damaged, or not a checkpoint of plain weights ({why})")


def _check_end(data: memoryview) -> None:
    """Check the records at the end of the archive, which contain the position of its directory.

    They must account for every byte, so that this code and other readers use the same directory.
    """
    before = max(0, len(data) - _LONGEST_END)
    end = before + bytes(data[before:]).rfind(b"PK\x05\x06")
    if end < before or len(data) < end + 22:
        raise ArchiveError("is damaged: its end is missing")
    size, offset, comment = struct.unpack_from("<LLH", data, end + 12)
    start = end
    if data[end - 20 : end - 16] == b"PK\x06\x07":  # an archive beyond 4 GB, whose numbers are 64 bits wide
        start = struct.unpack_from("<Q", data, end - 12)[0]
        if start != end - 76 or data[start : start + 4] != b"PK\x06\x06":
            raise refusal("its end points to another directory")
        size, offset = struct.unpack_from("<QQ", data, start + 40)
    if offset + size != start or end + 22 + comment != len(data):
        raise ArchiveError("is damaged: a part of it is missing, or something was added")


def _check_sum(data: memoryview, digest: str) -> bool:
    """Compare the checksum in ``data`` with ``digest``, and return whether there is a checksum."""
    comment = bytes(data[-_COMMENT:])
    if comment.startswith(_MARK) and comment[len(_MARK) :] != digest.encode():
        raise ArchiveError("is damaged: its checksum does not match")
    return comment.startswith(_MARK)


def _read_archive(file: io.BytesIO, data: memoryview, checked: bool) -> Any:
    """Read a zip archive, which any program may have written.

    data: the bytes of ``file``. checked: whether their checksum is right. If not, the checksums of all parts are
    compared.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if other := describe_archive([entry.filename for entry in entries]):
            raise ArchiveError(other)
        _check_entries(entries, len(data))
        parts = {entry.filename: _part(data, archive, entry) for entry in entries}
    for entry in () if checked else entries:
        if zlib.crc32(parts[entry.filename]) != entry.CRC:
            raise ArchiveError(f"is damaged: the checksum of its part {entry.filename!r:.80} does not match")
    (pickled,) = (name for name in parts if name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    if parts.get(f"{folder}byteorder", b"little") != b"little":
        raise refusal("its numbers are in big-endian order")
    prefix = f"{folder}data/"
    tensor_data = {name.removeprefix(prefix): part for name, part in parts.items() if name.startswith(prefix)}
    return PickleReader(io.BytesIO(parts[pickled]), len(data), tensor_data).load()


def _part(data: memoryview, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of an entry without copying them, unless they are not aligned as tensors need."""
    archive.open(entry).close()  # raises an error if the header before the bytes differs from the directory
    start = entry.header_offset + 30 + sum(struct.unpack_from("<HH", data, entry.header_offset + 26))
    part = data[start : start + entry.file_size]
    return part if start % 16 == 0 else memoryview(bytearray(part))


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    names = [entry.filename.lower() for entry in entries]  # a reader may ignore case
    if any(name.startswith("/") or "\\" in name or ".." in name.split("/") for name in names):
        raise refusal("it has paths that lead out of the archive")
    if len(set(names)) < len(names):
        raise refusal("it has two parts with the same name")
    # torch does not compress, so the sum of the parts of its archives is smaller than the file
    packed = any(
        entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries
    )
    if packed or sum(entry.file_size for entry in entries) > size:
        raise refusal("it is compressed or unpacks to more than its size, unlike a file of torch.save")


def _read_old_format(file: io.BytesIO, size: int) -> Any:
    """Read a file from torch before 1.6: five pickles (format, version, system, content, keys), then plain numbers."""
    readers = [PickleReader(file, size) for _ in range(5)]
    *_, content, keys = (reader.load() for reader in readers)
    reader = readers[3]
    if not isinstance(keys, list) or set(keys) != set(reader.tensor_data):
        raise ArchiveError("is damaged: it does not have the tensor data that it names")
    for key in keys:
        dtype, buffer = reader.tensor_data[key]
        if int.from_bytes(file.read(8), "little") * dtype.itemsize != len(buffer):
            raise ArchiveError(f"is damaged: its tensor data {key!r:.80} is not as long as it says")
        if len(numbers := file.read(len(buffer))) < len(buffer):
            raise ArchiveError("is damaged: its end is missing")
        memoryview(buffer)[:] = numbers
    if file.tell() != size:
        raise ArchiveError("is damaged: something was added to its end")
    return content
