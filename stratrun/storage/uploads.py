"""Files on their way to a store: in one request when they are small, else in parts."""

import io
import time
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from stratrun.storage.guard import Guard
from stratrun.storage.retry import answer, chain

if TYPE_CHECKING:
    from stratrun.storage.remote import RemoteStore

_PART = 16 * 2**20
_SAME_SIZE = 1000  # parts; then they grow, as a store takes 10,000 at most
_IN_FLIGHT = 3
_ABORT_SECONDS = 5.0


class Upload(ABC):
    """A file that appears when it is finished, whole, and not at all when it is aborted."""

    def __init__(self, store: "RemoteStore", guard: Guard, at: str) -> None:
        self._store = store
        self._guard = guard
        self._at = at
        self._buffer = io.BytesIO()
        self._parts = 0
        self.moved: float = time.monotonic()

    def write(self, block: memoryview) -> None:
        view = block.cast("B")
        while view:
            size = _PART * (1 + self._parts // _SAME_SIZE)
            taken = view[: size - self._buffer.tell()]
            self._buffer.write(taken)
            view = view[len(taken) :]
            if self._buffer.tell() == size and view:
                self._flush()

    def finish(self) -> None:
        if self._parts:
            self._flush()
            self._complete()
        else:
            self._send_whole(self._buffer.getvalue())

    @abstractmethod
    def abort(self) -> None:
        """Leave nothing behind, as far as the store lets us."""

    def _flush(self) -> None:
        if not self._parts:
            self._begin()
        self._parts += 1
        data = self._buffer.getvalue()
        self._buffer = io.BytesIO()
        self._send(self._parts, data)

    @abstractmethod
    def _send_whole(self, data: bytes) -> None:
        """Send a file that fits into one request."""

    @abstractmethod
    def _begin(self) -> None:
        """Announce a file in parts."""

    @abstractmethod
    def _send(self, number: int, data: bytes) -> None:
        """Send a part, the first being number 1."""

    @abstractmethod
    def _complete(self) -> None:
        """Have the parts become the file."""


class StreamUpload(Upload):
    """Through the stream of any file system, which cannot send a part anew: the whole file has to be."""

    _stream: Any = None

    def abort(self) -> None:
        if self._stream is not None:
            with suppress(Exception):
                self._store.within(_ABORT_SECONDS, self._stream.close)
            with suppress(Exception):
                self._store.call(_ABORT_SECONDS, "rm_file", self._at)

    def _send_whole(self, data: bytes) -> None:
        self._guard(
            "writing", self._at, lambda seconds: self._store.call(seconds, "pipe_file", self._at, data)
        )

    def _begin(self) -> None:
        self._stream = self._store.within(self._guard.retry.deadline, self._opened)

    def _opened(self) -> Any:
        return self._store.fs.open(self._at, "wb")

    def _send(self, number: int, data: bytes) -> None:
        self._store.within(self._guard.retry.deadline, lambda: self._stream.write(data))
        self.moved: float = time.monotonic()

    def _complete(self) -> None:
        self._store.within(self._guard.retry.deadline, self._stream.close)


class S3Upload(Upload):
    """By the multipart requests of S3: each is tried anew by itself, some run at once."""

    def __init__(self, store: "RemoteStore", guard: Guard, at: str) -> None:
        super().__init__(store, guard, at)
        bucket, _, key = at.partition("/")
        self._place = {"Bucket": bucket, "Key": key}
        self._pool: ThreadPoolExecutor | None = None
        self._flying: list[Future[None]] = []
        self._tags: dict[int, str] = {}
        self._size = 0

    def abort(self) -> None:
        self._land()
        if "UploadId" in self._place:
            with suppress(Exception):
                self._store.call(_ABORT_SECONDS, "call_s3", "abort_multipart_upload", **self._place)

    def _send_whole(self, data: bytes) -> None:
        self._request("put_object", data)

    def _begin(self) -> None:
        answered = self._request("create_multipart_upload")
        self._place["UploadId"] = answered["UploadId"]
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="stratrun-upload")

    def _send(self, number: int, data: bytes) -> None:
        assert self._pool is not None
        self._size += len(data)
        if len(self._flying) == _IN_FLIGHT:
            self._flying.pop(0).result()
        self._flying.append(self._pool.submit(self._put, number, data))

    def _put(self, number: int, data: bytes) -> None:
        self._tags[number] = self._request("upload_part", data, PartNumber=number)["ETag"]

    def _complete(self) -> None:
        for future in self._flying:
            future.result()
        self._land()
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in sorted(self._tags.items())]
        unsure = False

        def attempt(seconds: float) -> None:
            nonlocal unsure
            try:
                self._call(seconds, "complete_multipart_upload", MultipartUpload={"Parts": parts})
            except Exception as error:
                # The answer to an earlier try may have been lost, not the request.
                gone = any(answer(link)[0] == "NoSuchUpload" for link in chain(error))
                if not (gone and unsure and self._store.size(self._at) == self._size):
                    unsure = True
                    raise

        self._guard("writing", self._at, attempt)

    def _land(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _request(self, method: str, data: bytes | None = None, **kwargs: Any) -> Any:
        def attempt(seconds: float) -> Any:
            # Each try has a stream of its own; all share the bytes.
            body = {} if data is None else {"Body": io.BytesIO(data)}
            return self._call(seconds, method, **body, **kwargs)

        return self._guard("writing", self._at, attempt)

    def _call(self, seconds: float, method: str, **kwargs: Any) -> Any:
        return self._store.call(seconds, "call_s3", method, **self._place, **kwargs)


class Sink(io.RawIOBase):
    """An upload as a stream. Closing it does not finish the upload."""

    def __init__(self, upload: Upload, guard: Guard, at: str) -> None:
        self._upload = upload
        self._guard = guard
        self._at = at

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._guard("writing", self._at, lambda _: self._upload.write(view), once=True)
        return view.nbytes
