"""Atomic writes, and a lock so that one process at a time writes to a folder. This module does not import torch."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from isonet.errors import CheckpointError, StorageError

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger("isonet")

Content = bytes | str | Callable[[BinaryIO], None]  # the content of a file, or a function that writes it to a file

_TEMPORARY = re.compile(r"\.isonet-[0-9a-f]{16}\.tmp")  # no other program writes such names


def check_kind(*paths: Path) -> None:
    """Raise ``StorageError`` if one of ``paths`` exists and is neither a regular file nor a link to one.

    Opening a named pipe blocks until another program opens it, and renaming a file to a device replaces the device.
    """
    for path in paths:
        of_a_stream = os.path.islink(path) and os.readlink(path).startswith("/proc/")  # such as /dev/stdout
        if os.path.exists(path) and (of_a_stream or not os.path.isfile(path)):
            kinds = "a folder, a pipe, a socket or a device, not a file"
            raise StorageError(f"{path} is {kinds}: name another place, or remove it")


def write_file(path: Path, content: Content) -> None:
    """Write ``content`` to ``path`` atomically: ``path`` is always a complete file, the former or the new file.

    The content is written to a temporary file beside ``path``, synced to disk and renamed, so a kill or power failure
    never leaves an incomplete file. If ``path`` is a link, the new file replaces the link and not its
    target. Raises ``StorageError``, with the former file intact, if it cannot be written.
    """
    check_kind(path)
    temporary = _temporary(path.parent)
    try:
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        kept = "; the former file is intact" if path.exists() else ""
        raise StorageError(f"{path}: cannot be written ({reason(error)}){kept}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file. A kill may truncate the last line, which readers must tolerate."""
    replace_link(path)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({reason(error)})") from None


def replace_link(path: Path) -> None:
    """Replace a link at ``path`` by a copy of its target, so that appending to ``path`` does not change the target.

    Raises ``StorageError`` if ``path`` is not a file (see ``check_kind``).
    """
    check_kind(path)
    if path.is_symlink():
        write_file(path, path.read_bytes() if path.exists() else b"")


def link_file(path: Path, name: Path) -> None:
    """Make ``name`` another name of the file at ``path``, atomically, or a copy if the file system has no links."""
    check_kind(name)
    temporary = _temporary(name.parent)
    try:
        os.link(path, temporary)
        os.replace(temporary, name)
        _sync_folder(name.parent)
    except OSError:
        write_file(name, path.read_bytes())
    finally:  # ``os.replace`` does nothing if both names already belong to one file
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the incomplete files that a killed process left in ``write_file``, and no other files."""
    for file in folder.iterdir():
        if _TEMPORARY.fullmatch(file.name) and stat.S_ISREG(file.lstat().st_mode):
            file.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """Return the system's reason, such as "No space left on device", and a remedy."""
    remedy = {errno.ENOSPC: ": make room", errno.EDQUOT: ": make room", errno.ENOENT: ": its folder is gone"}
    return f"{error.strerror or error}{remedy.get(error.errno or 0, '')}"


def _temporary(folder: Path) -> Path:
    return folder / f".isonet-{os.urandom(8).hex()}.tmp"


def _sync_folder(folder: Path) -> None:
    """Sync a rename to disk, except on Windows, which cannot open a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems do not support it
            os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Raise a ``StorageError`` that names the folder of a run for an ``OSError`` in the ``with`` block."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({reason(error)}); see OUTPUT_DIR") from None


class FolderLock:
    """Locks ``folder`` against other processes while the ``with`` block runs, with filelock on the file ``lock``.

    The operating system releases the lock when the process ends, even after a kill. ``lock.txt`` beside it names the
    holder. If the folder does not exist, the ``with`` block has no lock until ``acquire`` is called.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self.holder = folder / "lock.txt"
        self._lock: BaseFileLock | None = None

    def __enter__(self) -> FolderLock:
        if os.path.isdir(self.path.parent):
            self.acquire()
        return self

    def acquire(self) -> bool:
        """Acquire the lock, and return whether this object did not have it before.

        Raises ``CheckpointError``, which names host and process, if another process holds it, and ``StorageError`` if
        the folder cannot be written.
        """
        from filelock import FileLock, Timeout  # not at the top: a command with a mistake locks nothing

        if self._lock:
            return False
        check_kind(self.path, self.holder)
        if self.path.is_symlink():
            raise StorageError(f"{self.path} is a link, and a lock must be a regular file: remove it")
        lock, folder = FileLock(self.path), self.path.parent
        with writing_to(folder):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                who = self._read_holder() or "another process"
                raise CheckpointError(
                    f"{folder} is in use by {who}: wait for it, stop it, or choose another --output"
                ) from None
        self._lock = lock
        if former := self._read_holder():
            log.info("%s, was killed while it wrote to this folder", former)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            write_file(self.holder, f"process {os.getpid()} on {socket.gethostname()}, since {since}")
        except BaseException:
            self.__exit__()
            raise
        return True

    def __exit__(self, *_: object) -> None:
        """Remove the files while they are still locked, so that no other process locks a file that is removed."""
        if self._lock:
            for file in (self.holder, self.path):
                with contextlib.suppress(OSError):
                    file.unlink()
            self._lock.release()
            self._lock = None

    def _read_holder(self) -> str:
        """Return the process, the host and the start time of the holder, or "" if they are not known."""
        try:
            return self.holder.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""
