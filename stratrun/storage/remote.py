"""Files in a store that fsspec knows: no rename, and requests that may fail or never be answered."""

import errno
import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import RLock, Thread
from typing import Any, BinaryIO, Literal, TypeVar, cast

from stratrun.storage.guard import Guard
from stratrun.storage.retry import ShortBody, answer, chain, from_source
from stratrun.storage.uploads import S3Upload, Sink, StreamUpload, Upload
from stratrun.storage.urls import has_folders, is_s3, protocols

T = TypeVar("T")

_REQUEST = 16 * 2**20
_memory = RLock()


class RemoteStore:
    """The operations of a folder elsewhere."""

    def __init__(self, fs: Any, guard: Guard) -> None:
        self.fs = fs
        self.guard = guard

    def call(self, seconds: float, method: str, *args: Any, **kwargs: Any) -> Any:
        """Have the file system do something, within the time."""
        coroutine = getattr(self.fs, f"_{method}", None) if getattr(self.fs, "async_impl", False) else None
        if coroutine is not None:
            from fsspec.asyn import sync
            from fsspec.exceptions import FSTimeoutError

            try:
                return sync(self.fs.loop, coroutine, *args, timeout=seconds, **kwargs)
            except FSTimeoutError as error:
                raise _no_answer(seconds) from error
        return self.within(seconds, lambda: getattr(self.fs, method)(*args, **kwargs))

    def children(self, root: str) -> dict[str, dict[str, Any]]:
        def list_it(seconds: float) -> Any:
            # Other processes write here too, and fsspec keeps what it once listed.
            self.fs.invalidate_cache(root)
            return self.call(seconds, "ls", root or "/", detail=True)

        named = {info["name"].strip("/"): info for info in self.guard("listing", root, list_it)}
        named.pop(root.strip("/"), None)  # a file lists itself, and so do some folders
        return {path.rpartition("/")[2]: info for path, info in named.items()}

    def exists(self, at: str) -> bool:
        return self._info(at) is not None

    def is_file(self, at: str) -> bool:
        info = self._info(at)
        return info is not None and info["type"] == "file"

    def make(self, at: str) -> None:
        if has_folders(self.fs):
            self.guard("making", at, lambda seconds: self.call(seconds, "makedirs", at, exist_ok=True))

    def make_safe(self, at: str) -> None:
        self.make(at)

    def sync(self, at: str) -> None:
        """What is written is the store's to keep."""

    def free_bytes(self, at: str) -> int | None:
        return None

    @contextmanager
    def open(self, at: str, mode: Literal["rb", "wb"]) -> Iterator[BinaryIO]:
        if mode == "rb":
            source = _Source(lambda start, into: self.read_into(at, start, into), self.size(at))
            yield io.BufferedReader(source, _REQUEST // 16)
            return
        self._make_parent(at)
        upload = self._upload(at)
        try:
            stream = io.BufferedWriter(Sink(upload, self.guard, at), _REQUEST // 16)
            yield cast(BinaryIO, stream)
            stream.flush()
            self.guard("writing", at, lambda _: upload.finish(), once=True)
        except BaseException:
            upload.abort()
            raise

    def read_bytes(self, at: str, limit: int | None) -> bytes:
        size = self.size(at)
        data = bytearray(size if limit is None else min(size, limit))
        self.read_into(at, 0, memoryview(data))
        return bytes(data)

    def read_into(self, at: str, start: int, into: memoryview) -> None:
        view = into.cast("B")
        for done in range(0, len(view), _REQUEST):
            self._read_once(at, start + done, view[done : done + _REQUEST])

    def create(self, at: str, data: bytes) -> None:
        """Write a file that must not be there yet, unless with the same bytes."""
        self._make_parent(at)

        def attempt(seconds: float) -> None:
            try:
                self.call(seconds, "pipe_file", at, data, mode="create")
            except FileExistsError:
                # The answer to an earlier try may have been lost, and not the request; what sends
                # requests has tries of its own, so this can be so even at our first.
                if self.read_bytes(at, len(data) + 1) != data:
                    raise

        self.guard("creating", at, attempt)

    def write_blocks(self, at: str, blocks: Callable[[], Iterable[memoryview]]) -> None:
        self._make_parent(at)
        moved = time.monotonic()

        def attempt(_: float) -> None:
            nonlocal moved
            upload = self._upload(at)
            try:
                for block in from_source(blocks()):
                    upload.write(block)
                    moved = upload.moved
                upload.finish()
            except BaseException:
                upload.abort()
                raise

        self.guard("writing", at, attempt, since=lambda: moved)

    def _upload(self, at: str) -> Upload:
        return S3Upload(self, self.guard, at) if is_s3(self.fs) else StreamUpload(self, self.guard, at)

    def remove(self, at: str) -> None:
        def attempt(seconds: float) -> None:
            self.fs.invalidate_cache(at)
            with suppress(FileNotFoundError):
                if self._info(at) is not None:
                    self.call(seconds, "rm", at, recursive=True)
                    # Of what a bulk request could not delete nothing is said; a single one says why.
                    for left in () if has_folders(self.fs) else self.call(seconds, "find", at):
                        self.call(seconds, "rm_file", left)

        self.guard("removing", at, attempt)

    def _read_once(self, at: str, start: int, into: memoryview) -> None:
        stop = start + len(into)

        def attempt(seconds: float) -> None:
            try:
                data = self.call(seconds, "cat_file", at, start=start, end=stop)
            except OSError as error:
                if not any(answer(link) in (("InvalidRange", 416), ("416", 416)) for link in chain(error)):
                    raise
                data = b""
            if len(data) != len(into):
                if (size := self.size(at)) < stop:
                    raise EOFError(
                        f"{self.guard.url(at)} has {size} bytes, and not the {stop} that are read of it"
                    )
                raise ShortBody(f"{len(data)} bytes came in place of {len(into)}")
            into[:] = data

        if len(into):
            self.guard("reading", at, attempt)

    def _make_parent(self, at: str) -> None:
        self.make(at.rpartition("/")[0])

    def size(self, at: str) -> int:
        info = self._info(at)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", self.guard.url(at))
        if info["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, "this is a folder", self.guard.url(at))
        return int(info["size"])

    def _info(self, at: str) -> dict[str, Any] | None:
        def ask(seconds: float) -> Any:
            self.fs.invalidate_cache(at)
            return self.call(seconds, "info", at)

        try:
            found: dict[str, Any] = self.guard("looking up", at, ask)
        except FileNotFoundError:
            return None
        return found

    def within(self, seconds: float, work: Callable[[], T]) -> T:
        """The result of a call that knows no time limit; after the time it is left to itself."""
        if "memory" not in protocols(self.fs):
            return _in_thread(seconds, work)
        with _memory:  # all who read one of its files share one position in it
            return work()


def _no_answer(seconds: float) -> TimeoutError:
    return TimeoutError(f"no answer within {seconds:.1f} s")


def _in_thread(seconds: float, work: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run, name="stratrun-storage", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise _no_answer(seconds)
    return results[0]


class _Source(io.RawIOBase):
    """A file of which the parts are fetched when they are read."""

    def __init__(self, read_into: Callable[[int, memoryview], None], size: int) -> None:
        self._read_into = read_into
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        self._read_into(self._at, view)
        self._at += len(view)
        return len(view)
