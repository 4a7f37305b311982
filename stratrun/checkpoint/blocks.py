"""Bytes of shards, each block verified by its checksum before anyone sees it as read."""

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

from stratrun.checkpoint.index import Index, Slice
from stratrun.checkpoint.layout import Digest
from stratrun.errors import CheckpointCorruptedError
from stratrun.storage import Folder

# One request fetches so much at most, of blocks that lie side by side.
_REQUEST = 8 << 20
_NOWHERE = memoryview(b"")
_COPIED = 1 << 20
# Reading waits for the store, verifying for the processor: with several threads one hides the other.
_LOCAL_THREADS = 4
_REMOTE_THREADS = 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """A range of the bytes of a slice, and the memory it goes to. It starts and ends with blocks."""

    place: Slice
    first: int
    into: memoryview


@dataclass(frozen=True, slots=True)
class _Block:
    """What one checksum covers, and where in the memory of a request it goes."""

    file: str
    start: int
    stop: int
    crc32: int
    memory: memoryview
    at: int

    @property
    def into(self) -> memoryview:
        return self.memory[self.at : self.at + self.stop - self.start]


class BlockReader:
    """Reads from the shards of one checkpoint, in a few threads."""

    def __init__(self, folder: Folder, index: Index, files: Mapping[str, Digest]) -> None:
        self._folder = folder
        self._index = index
        self._files = files
        self._checked: set[str] = set()
        self._scratch = threading.local()

    def span(self, place: Slice, start: int, stop: int) -> tuple[int, int]:
        """The range of whole blocks that holds a range of a slice's bytes."""
        block, size = self._index.block, place.stop - place.start
        return start // block * block, min(-(-stop // block) * block, size)

    def read(self, wanted: Iterable[Wanted]) -> None:
        """Fill all the memory.

        Raises:
            CheckpointCorruptedError: some of the bytes are not those that were written.
            OSError: they could not be fetched.
        """
        blocks = sorted(self._blocks(wanted), key=lambda block: (block.file, block.start))
        self._in_threads(self._read_run, _runs(blocks))

    def check_headers(self, files: Iterable[str]) -> None:
        """Verify what the files have before their first tensor; with that their digests are right.

        Raises:
            CheckpointCorruptedError: some header is not as it was written.
        """
        due = set(files) - self._checked
        slices = self._index.in_files() if due else {}
        self._in_threads(lambda file: self._check_header(file, slices[file]), sorted(due))

    def verify(self) -> int:
        """Read everything there is, and return how many bytes that were.

        Raises:
            CheckpointCorruptedError: some byte is not as it was written.
        """
        slices = self._index.in_files()
        self.check_headers(slices)
        blocks = [block for of_file in slices.values() for place in of_file for block in self._all_of(place)]
        self._in_threads(self._check_run, _runs(blocks))
        return sum(self._files[file].size for file in slices)

    def _all_of(self, place: Slice) -> Iterator[_Block]:
        for number, crc in enumerate(place.crc32):
            start = place.start + number * self._index.block
            yield _Block(place.file, start, min(start + self._index.block, place.stop), crc, _NOWHERE, 0)

    def _check_run(self, run: list[_Block]) -> None:
        start, size = run[0].start, run[-1].stop - run[0].start
        if len(getattr(self._scratch, "memory", b"")) < size:
            self._scratch.memory = memoryview(bytearray(size))
        scratch = self._scratch.memory[:size]
        self._fetch(run[0].file, start, scratch)
        for block in run:
            self._check(block, scratch[block.start - start : block.stop - start])

    def _blocks(self, wanted: Iterable[Wanted]) -> Iterator[_Block]:
        size = self._index.block
        for want in wanted:
            for at in range(0, len(want.into), size):
                crc = want.place.crc32[(want.first + at) // size]
                start, count = want.place.start + want.first + at, min(size, len(want.into) - at)
                yield _Block(want.place.file, start, start + count, crc, want.into, at)

    def _read_run(self, run: list[_Block]) -> None:
        """Fetch blocks that lie side by side with one request."""
        file, start, size = run[0].file, run[0].start, run[-1].stop - run[0].start
        if run[-1].memory is run[0].memory:
            self._fetch(file, start, run[0].memory[run[0].at : run[0].at + size])
            for block in run:
                self._check(block, block.into)
            return
        scratch = memoryview(bytearray(size))
        self._fetch(file, start, scratch)
        for block in run:
            found = scratch[block.start - start : block.stop - start]
            self._check(block, found)
            block.into[:] = found

    def _fetch(self, file: str, start: int, into: memoryview) -> None:
        try:
            self._folder.read_into(file, start, into)
        except EOFError as error:
            raise CheckpointCorruptedError(f"{file} is cut short: {error}") from error

    def _check(self, block: _Block, found: memoryview) -> None:
        if zlib.crc32(found) != block.crc32:
            raise CheckpointCorruptedError(
                f"{block.file} is damaged: the checksum of bytes {block.start} to {block.stop}, which are "
                f"{self._owner(block)}, does not match"
            )

    def _owner(self, block: _Block) -> str:
        """What a block is of, for who has to know what is lost."""
        for name, entry in self._index.tensors.items():
            if any(s.file == block.file and s.start <= block.start < s.stop for s in entry.slices):
                return f"of {name!r}"
        return "of no tensor"

    def _check_header(self, file: str, slices: list[Slice]) -> None:
        header = memoryview(bytearray(slices[0].start))
        self._fetch(file, 0, header)
        digest = hashlib.sha256(header)
        for place in slices:
            digest.update(b"".join(crc.to_bytes(4, "little") for crc in place.crc32))
        if digest.hexdigest() != self._files[file].value:
            raise CheckpointCorruptedError(f"{file} is damaged: its digest does not match")
        self._checked.add(file)

    def _in_threads(self, work: Callable[..., None], items: Iterable[object]) -> None:
        items = list(items)
        most = _LOCAL_THREADS if self._folder.is_local else _REMOTE_THREADS
        threads = min(most, len(items), 2 * (os.cpu_count() or 1) if self._folder.is_local else most)
        if threads < 2:
            for item in items:
                work(item)
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="stratrun-read") as pool:
            futures = [pool.submit(work, item) for item in items]
            _, late = wait(futures, return_when=FIRST_EXCEPTION)
            for future in late:
                future.cancel()
        for future in futures:
            if not future.cancelled():
                future.result()


def _goes_on(run: list[_Block], block: _Block) -> bool:
    """Whether a block is fetched with those before it: unless that costs a copy that is worth a request."""
    first, last = run[0], run[-1]
    if block.file != last.file or block.start != last.stop or block.stop - first.start > _REQUEST:
        return False
    return block.memory is first.memory or block.stop - first.start <= _COPIED


def _runs(blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
    """Blocks that lie side by side, together as far as one request goes."""
    run: list[_Block] = []
    for block in blocks:
        if run and not _goes_on(run, block):
            yield run
            run = []
        run.append(block)
    if run:
        yield run
