"""Bytes at a URL: a local path, memory, or any store that fsspec knows."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from stratrun.errors import ConfigError, MissingDependencyError, nearest

_CREDENTIALS = re.compile(r"(?<=://)[^/@]*@")
_QUERY = re.compile(r"\?.*", re.DOTALL)
_LONGEST_NAME = 255


class Folder:
    """A folder at a URL, there or not yet. Paths given to its methods lie inside it.

    On local disk whatever was written survives a loss of power once the call returns. Elsewhere the
    store decides; those have no rename, and a file appears when it is closed.
    """

    def __init__(self, url: str | os.PathLike[str], **options: Any) -> None:
        """`options` go to the fsspec file system: keys, endpoints, profiles."""
        text = os.fspath(url)
        if not text:
            raise ConfigError("'' is no folder; name a path, or a URL such as s3://bucket/run")
        self.url = redacted(text)
        self._fs, root = _file_system(text, options)
        self._root: str = root.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and (self._fs, self._root) == (other._fs, other._root)

    def __hash__(self) -> int:
        return hash(self._root)

    @property
    def is_local(self) -> bool:
        protocol = self._fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    @property
    def name(self) -> str:
        return self._root.rpartition("/")[2]

    def child(self, path: str) -> "Folder":
        at = self._at(path)
        return self._moved(at, f"{self.url.removesuffix('/')}/{path}")

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

    def exists(self, path: str = "") -> bool:
        at = self._at(path) if path else self._root
        self._fs.invalidate_cache(at)
        return bool(self._fs.exists(at))

    def is_file(self) -> bool:
        """Whether the URL leads to a file rather than a folder."""
        return bool(self._fs.isfile(self._root))

    @contextmanager
    def open(self, path: str, mode: Literal["rb", "wb"] = "rb") -> Iterator[BinaryIO]:
        """Open for reading, or write anew, making the folders that are missing."""
        at = self._at(path)
        if mode == "wb":
            self._fs.makedirs(at.rpartition("/")[0], exist_ok=True)
        if not self.is_local:
            with self._fs.open(at, mode) as stream:
                yield stream
            return
        with open(at, mode) as file:
            yield file
            if mode == "wb":
                file.flush()
                os.fsync(file.fileno())

    def read_bytes(self, path: str, limit: int | None = None) -> bytes:
        """The whole file.

        Raises:
            ConfigError: it has more than `limit` bytes.
        """
        with self.open(path) as stream:
            data = stream.read() if limit is None else stream.read(limit + 1)
        if limit is not None and len(data) > limit:
            raise ConfigError(f"{self.url}/{path} has more than the {limit} bytes that are read at most")
        return data

    def write_bytes(self, path: str, data: bytes) -> None:
        with self.open(path, "wb") as stream:
            stream.write(data)

    def make(self) -> None:
        """Create the folder. Stores without folders have nothing to do."""
        self._fs.makedirs(self._root, exist_ok=True)

    def sync(self) -> None:
        """Have the names in the folder survive a loss of power, as `open` does for contents."""
        if not self.is_local:
            return
        handle = os.open(self._root or "/", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: str, new: str) -> None:
        """Move a direct child, in one step that cannot be half done. Local disk only.

        Raises:
            FileExistsError: `new` is there already.
        """
        if not self.is_local:
            raise ConfigError(f"{self.url} cannot rename: only local folders can")
        if self.exists(new):
            raise FileExistsError(f"{self.url}/{new} is there already")
        os.rename(self._at(old), self._at(new))
        self.sync()

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all it holds; nothing there is no error."""
        at = self._at(path)
        self._fs.invalidate_cache(at)
        if not self.is_local:
            if self._fs.exists(at):
                self._fs.rm(at, recursive=True)
        elif os.path.isdir(at) and not os.path.islink(at):
            shutil.rmtree(at)
        elif os.path.lexists(at):
            os.unlink(at)

    def _children(self) -> dict[str, dict[str, Any]]:
        # Other processes write here too, and fsspec keeps what it once listed.
        self._fs.invalidate_cache(self._root)
        try:
            listing = self._fs.ls(self._root or "/", detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        named = {info["name"].strip("/"): info for info in listing}
        named.pop(self._root.strip("/"), None)  # a file lists itself
        return {path.rpartition("/")[2]: info for path, info in named.items()}

    def _at(self, path: str) -> str:
        parts = path.split("/")
        bad = [part for part in parts if part in ("", ".", "..") or len(part) > _LONGEST_NAME]
        if bad or "\\" in path or ":" in path or "\0" in path:
            raise ConfigError(f"{path[:100]!r} is not a plain relative path; it could leave {self.url}")
        return f"{self._root}/{path}"

    def _moved(self, root: str, url: str) -> "Folder":
        moved: Folder = object.__new__(type(self))
        moved.url, moved._fs, moved._root = url, self._fs, root
        return moved


def redacted(url: str) -> str:
    """A URL without what may be secret in it: user and password, query."""
    return _QUERY.sub("?***", _CREDENTIALS.sub("***@", url)) if "://" in url else url


def _file_system(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    # Here, as importing the runner must not import what only a run needs.
    from fsspec import available_protocols
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    try:
        fs, root = url_to_fs(url, **options)
    except ImportError as error:
        raise MissingDependencyError(
            f"{redacted(url)}: {scheme}:// needs a package that is not installed ({error})"
        ) from error
    except ValueError as error:
        if scheme in available_protocols():
            raise ConfigError(f"{redacted(url)} cannot be opened: {error}") from error
        raise ConfigError(
            f"{redacted(url)}: no storage is called {scheme!r}; {nearest(scheme, available_protocols())}"
        ) from error
    return fs, str(root)
