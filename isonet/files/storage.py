"""Files that are whole at every moment, and a folder that one process writes at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import tempfile
import time
from pathlib import Path
from types import TracebackType

from isonet.errors import CheckpointError, StorageError

log = logging.getLogger("isonet")

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # what file systems without locks answer


def write_file(path: Path, content: bytes | str) -> None:
    """Put ``content`` at ``path``, where at every moment a whole file lies, the former or the new one.

    It is written beside ``path``, forced to disk and renamed, so that neither a kill nor a power cut
    leaves a part. Raises ``StorageError``, with the former file intact, where it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would hide the run from colleagues
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise StorageError(f"{path}: cannot be written ({reason(error)}){_kept(path)}") from None
        raise


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file. A kill may leave a part of it, which whoever reads the file must allow for."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({reason(error)})") from None


def link_file(path: Path, name: Path) -> None:
    """Let ``name`` mean the file at ``path`` as well, in one step; a copy where the file system has no links."""
    temporary = name.parent / f".{name.name}.link.tmp"
    try:
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        os.replace(temporary, name)
        _sync_folder(name.parent)
    except OSError:
        write_file(name, path.read_bytes())


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process had begun to write in ``folder``."""
    for file in folder.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """The system's words, such as "No space left on device", and what they ask for."""
    remedy = {errno.ENOSPC: ": make room", errno.EDQUOT: ": make room", errno.ENOENT: ": its folder is gone"}
    return f"{error.strerror or error}{remedy.get(error.errno or 0, '')}"


def _kept(path: Path) -> str:
    return "; the former file is intact" if path.exists() else ""


def _sync_folder(folder: Path) -> None:
    """Force a rename to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class FolderLock:
    """Keeps a second process out of ``folder`` while the ``with`` block runs.

    The lock is the operating system's, on the file ``lock``, and ends with the process that holds it,
    however that ends; the file names its holder. Worker processes do not inherit it. A ``with`` block
    on a folder that does not exist holds nothing until ``acquire``.
    Raises ``CheckpointError``, which names host and process, where another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self.handle: int | None = None

    def __enter__(self) -> FolderLock:
        if os.path.isdir(self.path.parent):
            self.acquire()
        return self

    def acquire(self) -> bool:
        """Take the lock; returns whether this object did not hold it before."""
        held = self.handle is not None
        while self.handle is None:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                message = f"{self.path.parent}: cannot be written ({reason(error)}); see OUTPUT_DIR"
                raise StorageError(message) from None
            try:
                self._lock(handle)
            except BaseException:
                os.close(handle)
                raise
            if self._is_current(handle):
                self.handle = handle
                self._sign(handle)
            else:  # its holder removed the file between our two calls
                os.close(handle)
        return not held

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.handle is None:
            return
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self.handle)
        self.handle = None

    def _lock(self, handle: int) -> None:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(handle)
            if error.errno in _NO_LOCKS and not _may_live(holder):
                return
            raise CheckpointError(self._in_use(holder)) from None

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _sign(self, handle: int) -> None:
        """Write down who holds the lock, and tell of a former holder that did not end well."""
        if former := _read(handle):
            log.info("process %s on %s was killed while it wrote to this folder", former["pid"], former["host"])
        me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        try:
            os.truncate(handle, 0)
            os.pwrite(handle, json.dumps(me).encode(), 0)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written ({reason(error)})") from None

    def _in_use(self, holder: dict[str, object]) -> str:
        who = "process {pid} on {host}, since {since}".format(**holder) if holder else "another process"
        return (
            f"{self.path.parent} is in use by {who}: wait for it, stop it, or choose another --output"
            f" (if it no longer exists, remove {self.path})"
        )


def _read(handle: int) -> dict[str, object]:
    """The holder that a lock file names; empty where it names none."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return {key: found[key] for key in ("host", "pid", "since")}
    except (ValueError, KeyError, TypeError):
        return {}


def _may_live(holder: dict[str, object]) -> bool:
    """Whether the holder may still run, where the file system has no locks to tell: not if it is known to be dead."""
    if not holder or holder["host"] != socket.gethostname():
        return bool(holder)
    return Path(f"/proc/{holder['pid']}").exists()
