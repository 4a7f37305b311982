"""Bytes at a URL: a local path, memory, or any store that fsspec knows."""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from stratrun.errors import ConfigError, StorageError
from stratrun.storage.guard import Guard
from stratrun.storage.local import LocalStore
from stratrun.storage.remote import RemoteStore
from stratrun.storage.retry import Retry, kind_of, kind_on_disk
from stratrun.storage.urls import Secrets, file_system, protocols, redacted

__all__ = ["Folder", "redacted"]

_LONGEST_NAME = 255
_PROBE_DEADLINE = 30.0


class Folder:
    """A folder at a URL, there or not yet. Paths given to its methods lie inside it.

    On local disk whatever was written survives a loss of power once the call returns. Elsewhere the store
    decides; those have no rename, a file appears when it is whole, and what fails there is tried again.
    Every method raises StorageError when the store refuses, is full or does not answer in time.
    """

    def __init__(self, url: str | os.PathLike[str], retry: Retry | None = None, **options: Any) -> None:
        """`options` go to the fsspec file system: keys, endpoints, profiles."""
        text = os.fspath(url)
        if not text:
            raise ConfigError("'' is no folder; name a path, or a URL such as s3://bucket/run")
        self.url: str = redacted(text)
        self._retry = retry or Retry()
        self._secrets = Secrets(text, options)
        self._fs, root = file_system(text, options)
        self._root: str = root.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and (self._fs, self._root) == (other._fs, other._root)

    def __hash__(self) -> int:
        return hash(self._root)

    @property
    def is_local(self) -> bool:
        return "file" in protocols(self._fs)

    @property
    def name(self) -> str:
        return self._root.rpartition("/")[2]

    def child(self, path: str) -> "Folder":
        return self._moved(self._at(path), f"{self.url.removesuffix('/')}/{path}")

    @property
    def parent(self) -> "Folder":
        return self._moved(self._root.rpartition("/")[0], self.url.rstrip("/").rpartition("/")[0])

    def local_path(self) -> Path | None:
        return Path(self._root or "/") if self.is_local else None

    def names(self) -> list[str]:
        """Direct children, files and folders, sorted; none when the folder does not exist yet."""
        return sorted(self._children())

    def sizes(self) -> dict[str, int]:
        """Bytes of each file that lies directly in the folder."""
        return {name: info["size"] for name, info in self._children().items() if info["type"] != "directory"}

    def changed(self) -> float | None:
        """When a file in it was last written, in seconds since 1970 by the clock of the store, if known."""
        return max(filter(None, map(_written, self._children().values())), default=None)

    def exists(self, path: str = "") -> bool:
        return self._store.exists(self._at(path) if path else self._root)

    def is_file(self) -> bool:
        """Whether the URL leads to a file rather than a folder."""
        return self._store.is_file(self._root)

    def free_bytes(self) -> int | None:
        """Bytes that may still be written here; None where that is not known."""
        return self._store.free_bytes(self._root)

    def open(self, path: str, mode: Literal["rb", "wb"] = "rb") -> AbstractContextManager[BinaryIO]:
        """Open for reading, or write anew, making the folders that are missing.

        What is written is sent once: `write_blocks` and `write_bytes` are the ones that try again.
        """
        return self._store.open(self._at(path), mode)

    def read_bytes(self, path: str, limit: int | None = None) -> bytes:
        """The whole file.

        Raises:
            ConfigError: it has more than `limit` bytes.
        """
        data = self._store.read_bytes(self._at(path), None if limit is None else limit + 1)
        if limit is not None and len(data) > limit:
            raise ConfigError(f"{self.url}/{path} has more than the {limit} bytes that are read at most")
        return data

    def read_into(self, path: str, start: int, into: memoryview) -> None:
        """Fill memory with what the file has from byte `start`. Many threads may do so at once.

        Raises:
            EOFError: the file is too short.
        """
        self._store.read_into(self._at(path), start, into)

    def write_bytes(self, path: str, data: bytes, exclusive: bool = False) -> None:
        """Write a file whole. `exclusive`: of several who write different bytes at once, one succeeds.

        Raises:
            FileExistsError: `exclusive`, and the file is there already, with other bytes.
        """
        if exclusive:
            self._store.create(self._at(path), data)
            return

        def attempt(_: float) -> None:
            with self.open(path, "wb") as stream:
                stream.write(data)

        self._store.guard("writing", self._at(path), attempt)

    def write_blocks(self, path: str, blocks: Callable[[], Iterable[memoryview]]) -> None:
        """Write a new file out of blocks, which are made anew when it has to be written again.

        A block may be reused for the next one. On local disk, blocks that begin on a page (4096 bytes) and
        fill pages go past the cache, as fast as the disk takes them.

        Raises:
            FileExistsError: on local disk, the file is there already.
        """
        self._store.write_blocks(self._at(path), blocks)

    def probe(self, token: str) -> None:
        """Find out whether files can be written, read and deleted here; `token` keeps probes apart.

        Raises:
            StorageError: they cannot; says what failed.
        """
        _probe(self.hurried(_PROBE_DEADLINE), f".probe-{token}", token.encode())

    def hurried(self, seconds: float) -> "Folder":
        """The same folder, where no operation takes longer."""
        quick = replace(self._retry, deadline=min(self._retry.deadline, seconds))
        return self._moved(self._root, self.url, quick)

    def make(self) -> None:
        """Create the folder. Stores without folders have nothing to do."""
        self._store.make_safe(self._root)

    def sync(self) -> None:
        """Have the names in the folder survive a loss of power, as writing does for contents."""
        self._store.sync(self._root)

    def rename(self, old: str, new: str) -> None:
        """Move a direct child, in one step that cannot be half done. Local disk only.

        Raises:
            FileExistsError: `new` is there already.
        """
        store = self._store
        if not isinstance(store, LocalStore):
            raise ConfigError(f"{self.url} cannot rename: only local folders can")
        if self.exists(new):
            raise FileExistsError(f"{self.url}/{new} is there already")
        store.rename(self._at(old), self._at(new))
        self.sync()

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all it holds; nothing there is no error."""
        self._store.remove(self._at(path))

    @property
    def _store(self) -> LocalStore | RemoteStore:
        if self.is_local:
            return LocalStore(Guard(self._retry, kind_on_disk, self._secrets, str))
        return RemoteStore(self._fs, Guard(self._retry, kind_of, self._secrets, self._shown))

    def _children(self) -> dict[str, dict[str, Any]]:
        try:
            return self._store.children(self._root)
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def _shown(self, at: str) -> str:
        return f"{self.url.removesuffix('/')}{at.removeprefix(self._root)}"

    def _at(self, path: str) -> str:
        parts = path.split("/")
        bad = [part for part in parts if part in ("", ".", "..") or len(part) > _LONGEST_NAME]
        if bad or "\\" in path or ":" in path or "\0" in path:
            raise ConfigError(f"{path[:100]!r} is not a plain relative path; it could leave {self.url}")
        return f"{self._root}/{path}"

    def _moved(self, root: str, url: str, retry: Retry | None = None) -> "Folder":
        moved: Folder = object.__new__(type(self))
        moved.url, moved._fs, moved._root = url, self._fs, root
        moved._retry, moved._secrets = retry or self._retry, self._secrets
        return moved


def _probe(folder: Folder, name: str, data: bytes) -> None:
    try:
        folder.make()
        folder.write_bytes(name, data)
        found = folder.read_bytes(name)
        folder.remove(name)
    except (OSError, EOFError) as error:
        if folder.is_local:
            with suppress(OSError):  # a full disk has its name all the same
                folder.remove(name)
        if isinstance(error, StorageError):
            raise
        number = getattr(error, "errno", None)
        raise StorageError(f"{folder} cannot be used: {error}", number) from error
    if found != data:
        raise StorageError(f"{folder}/{name} was written and does not read the same")


def _written(info: Mapping[str, Any]) -> float | None:
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None
