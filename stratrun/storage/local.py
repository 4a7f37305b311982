"""Files on local disk: written past the cache where that can be, and safe from a loss of power."""

import ctypes
import errno
import fcntl
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Literal

from stratrun.errors import StorageError
from stratrun.storage.guard import Guard
from stratrun.storage.retry import from_source

_PAGE = 4096
# Linux has these two. A folder opened for writing without the second is an error that `create` expects.
_DIRECT: int = getattr(os, "O_DIRECT", 0)
_NAMELESS: int = getattr(os, "O_TMPFILE", 0)


class LocalStore:
    """The operations of a folder on local disk."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def children(self, root: str) -> dict[str, dict[str, Any]]:
        return self.guard("listing", root, lambda _: _scan(root))

    def exists(self, at: str) -> bool:
        return self._mode(at) is not None

    def is_file(self, at: str) -> bool:
        mode = self._mode(at)
        return mode is not None and stat.S_ISREG(mode)

    def make(self, at: str) -> None:
        try:
            self.guard("making", at, lambda _: os.makedirs(at, exist_ok=True))
        except (FileExistsError, NotADirectoryError) as error:
            # Not as it is: who creates a file would take it for one of theirs that is there already.
            file = next((one for one in _upwards(at) if os.path.lexists(one)), at)
            raise StorageError(
                f"making {self.guard.url(at)} failed: {self.guard.url(file)} is in the way, and no folder; "
                "move it away or name another place",
                error.errno,
            ) from error

    def make_safe(self, at: str) -> None:
        """Make a folder whose name, like those of the folders above it, survives a loss of power."""
        made = missing_folders(at)
        self.make(at)
        for folder in made:
            self.sync(os.path.dirname(folder))

    @contextmanager
    def open(self, at: str, mode: Literal["rb", "wb"]) -> Iterator[BinaryIO]:
        if mode == "wb":
            self.make(os.path.dirname(at))
        with open(at, mode) as file:
            yield file
            if mode == "wb":
                file.flush()
                os.fsync(file.fileno())

    def read_bytes(self, at: str, limit: int | None) -> bytes:
        def attempt(_: float) -> bytes:
            with self.open(at, "rb") as file:
                return file.read(-1 if limit is None else limit)

        return self.guard("reading", at, attempt)

    def read_into(self, at: str, start: int, into: memoryview) -> None:
        self.guard("reading", at, lambda _: _read_into(at, start, into.cast("B")))

    def create(self, at: str, data: bytes) -> None:
        """Write a file that must not be there yet, unless with the same bytes. It appears whole."""
        self.make(os.path.dirname(at))
        try:
            self.guard("creating", at, lambda _: _create(at, data))
        except FileExistsError:
            if self.read_bytes(at, len(data) + 1) != data:
                raise

    def write_blocks(self, at: str, blocks: Callable[[], Iterable[memoryview]]) -> None:
        self.make(os.path.dirname(at))
        self.guard("writing", at, lambda _: write_new(at, from_source(blocks())))

    def rename(self, old: str, new: str) -> None:
        # Not again after a failure: on a network mount it may have been done all the same.
        self.guard("renaming", old, lambda _: os.rename(old, new), once=True)

    def sync(self, at: str) -> None:
        self.guard("syncing", at, lambda _: _sync(at or "/"))

    def remove(self, at: str) -> None:
        self.guard("removing", at, lambda _: _remove(at))

    def _mode(self, at: str) -> int | None:
        """What kind of thing there is; None for nothing. Not to be told is an error, not nothing."""
        try:
            return self.guard("looking up", at, lambda _: os.stat(at).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def free_bytes(self, at: str) -> int:
        while not os.path.exists(at) and at != os.path.dirname(at):
            at = os.path.dirname(at)
        return self.guard("looking up", at, lambda _: shutil.disk_usage(at or "/").free)


def missing_folders(at: str) -> list[str]:
    """Those that making a folder would make, the innermost first."""
    return list(itertools.takewhile(lambda one: not os.path.exists(one), _upwards(at)))


def remove_empty(folders: Iterable[str]) -> None:
    """Remove those of `missing_folders` that are there now, and hold nothing."""
    with suppress(OSError):
        for folder in folders:
            with suppress(FileNotFoundError):
                os.rmdir(folder)


def _upwards(at: str) -> Iterator[str]:
    """The path and the folders above it."""
    while at:
        yield at
        above = os.path.dirname(at)
        at = above if above != at else ""


def _scan(root: str) -> dict[str, dict[str, Any]]:
    found = {}
    with os.scandir(root or "/") as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # removed meanwhile
                found[entry.name] = _info(entry)
    return found


def _read_into(at: str, start: int, into: memoryview) -> None:
    handle = os.open(at, os.O_RDONLY)
    try:
        done = 0
        while done < len(into):
            count = os.preadv(handle, [into[done:]], start + done)
            if not count:
                raise EOFError(
                    f"{at} has {start + done} bytes, and not the {start + len(into)} that are read of it"
                )
            done += count
    finally:
        os.close(handle)


def _sync(at: str) -> None:
    handle = os.open(at, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(at: str) -> None:
    if os.path.isdir(at) and not os.path.islink(at):
        shutil.rmtree(at)
    elif os.path.lexists(at):
        os.unlink(at)


def _create(at: str, data: bytes) -> None:
    try:
        handle = os.open(os.path.dirname(at), _NAMELESS | os.O_WRONLY, 0o666)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        write_new(at, [memoryview(data)])  # a file system without nameless files
        return
    try:
        _write_all(handle, memoryview(data), 0)
        os.fsync(handle)
        # Any folder will do; without one the link itself would be linked, not what it leads to.
        os.link(f"/proc/self/fd/{handle}", at, src_dir_fd=handle)
    finally:
        os.close(handle)


def write_new(at: str, blocks: Iterable[memoryview]) -> None:
    """Write a file that must not be there yet, and sync it; when that fails nothing of it stays."""
    handle = os.open(at, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        offset, direct = 0, _set_direct(handle, True)
        for block in blocks:
            view = block.cast("B")
            whole = len(view) // _PAGE * _PAGE if direct and offset % _PAGE == 0 and _aligned(view) else 0
            if whole:
                _write_all(handle, view[:whole], offset)
            if whole < len(view):
                # Less than a page, or memory that the disk cannot fetch by itself: through the cache.
                direct = direct and not _set_direct(handle, False)
                _write_all(handle, view[whole:], offset + whole)
            offset += len(view)
        os.fsync(handle)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(at)
        raise
    finally:
        os.close(handle)


def _write_all(handle: int, view: memoryview, offset: int) -> None:
    while view:
        try:
            count = os.pwrite(handle, view, offset)
        except OSError as error:
            # Some file systems take the flag and refuse the write, or want larger units.
            if error.errno != errno.EINVAL or not _is_direct(handle):
                raise
            _set_direct(handle, False)
            continue
        view, offset = view[count:], offset + count


def _aligned(view: memoryview) -> bool:
    if view.readonly or not len(view):
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) % _PAGE == 0


def _is_direct(handle: int) -> bool:
    return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & _DIRECT)


def _set_direct(handle: int, on: bool) -> bool:
    """Whether it is now as asked."""
    if not _DIRECT:
        return not on
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT)
    except OSError:
        return False
    return True


def _info(entry: os.DirEntry[str]) -> dict[str, Any]:
    try:
        found = entry.stat()
    except FileNotFoundError:
        found = entry.stat(follow_symlinks=False)  # a link that leads nowhere
    kind = "directory" if entry.is_dir() else "file"
    return {"type": kind, "size": found.st_size, "mtime": found.st_mtime}
