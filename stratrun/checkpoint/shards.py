"""Tensors into safetensors files, at the speed of the disk.

A file is put together in a few page-aligned buffers that are used over and over: one is written while the
next is filled and its checksums are taken, so large direct writes never wait for Python.
"""

import ctypes
import hashlib
import json
import math
import mmap
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from stratrun.checkpoint import index, layout
from stratrun.checkpoint.index import Slice
from stratrun.checkpoint.layout import Digest
from stratrun.errors import CheckpointError
from stratrun.storage import Folder

_CODES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {code: dtype for dtype, code in _CODES.items()}
PAGE = mmap.PAGESIZE
_BUFFER = 8 << 20
# Copied and summed at once: in the processor's cache still, and the interpreter is asked for seldom.
_CHUNK = 4 << 20
_ALIGNMENT = 64
_ABOUT = "__metadata__"
# One thread keeps up with a disk until there is this much to write; a handful saturates any.
_PER_FILE = 256 << 20
_MOST_FILES = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor that is to be written."""

    name: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    data: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Written:
    """A piece that was written, and the file that it is in."""

    name: str
    place: Slice
    digest: Digest


def code_of(name: str, dtype: torch.dtype) -> str:
    """What safetensors files call a dtype.

    Raises:
        CheckpointError: they have no such one.
    """
    if dtype not in _CODES:
        raise CheckpointError(f"{name!r} is of dtype {dtype}, which safetensors files do not have")
    return _CODES[dtype]


def dtype_name(code: str) -> str:
    """What torch calls a dtype of safetensors files, without the ``torch.``."""
    return str(DTYPES[code]).removeprefix("torch.")


def write_shards(folder: Folder, name: Callable[[int], str], pieces: Sequence[Piece]) -> list[Written]:
    """Write the pieces of one rank, as one file or as several at the same time.

    Args:
        name: Gives the name of a file by its number: 0 when it is the only one, else from 1.

    Raises:
        Exception: any that was raised in any of the threads; what is there then is no whole.
    """
    if not pieces:
        return []
    parts = _balanced(pieces)
    if len(parts) == 1:
        return _write(folder, name(0), parts[0])
    with ThreadPoolExecutor(len(parts), thread_name_prefix="stratrun-shard") as pool:
        futures = [pool.submit(_write, folder, name(i), part) for i, part in enumerate(parts, start=1)]
    return [written for future in futures for written in future.result()]


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, in place. Valid as long as the tensor is."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        return memoryview(b"")
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")


def _balanced(pieces: Sequence[Piece]) -> list[list[Piece]]:
    total = sum(piece.nbytes for piece in pieces)
    count = min(_MOST_FILES, len(pieces), max(1, -(-total // _PER_FILE)))
    parts: list[list[Piece]] = [[] for _ in range(count)]
    sizes = [0] * count
    for piece in sorted(pieces, key=lambda piece: -piece.nbytes):
        lightest = sizes.index(min(sizes))
        parts[lightest].append(piece)
        sizes[lightest] += piece.nbytes
    return parts


def _write(folder: Folder, file: str, pieces: Sequence[Piece]) -> list[Written]:
    # By falling width, so that each starts at a multiple of its own width.
    order = sorted(pieces, key=lambda piece: (-piece.dtype.itemsize, piece.name, piece.offsets))
    content = _Content(*header(_named(order), {"format": "pt"}), order)
    folder.write_blocks(file, content.blocks)
    digest = content.digest()
    return [
        Written(piece.name, Slice(piece.offsets, piece.shape, file, start, stop, tuple(crcs)), digest)
        for piece, (start, stop), crcs in zip(order, content.places, content.crcs, strict=True)
    ]


def _named(pieces: Sequence[Piece]) -> dict[str, tuple[torch.dtype, Sequence[int]]]:
    """Dtype and shape of each, by a name of its own."""
    named: dict[str, tuple[torch.dtype, Sequence[int]]] = {}
    for piece in pieces:
        name = piece.name
        while name in named or name == _ABOUT:  # several boxes of one tensor
            name += "@" + ",".join(map(str, piece.offsets))
        named[name] = (piece.dtype, piece.shape)
    return named


def header(
    tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]], about: Mapping[str, str]
) -> tuple[bytes, list[tuple[int, int]]]:
    """The head of a safetensors file, and where each tensor lies counted from the file's start.

    Args:
        tensors: Dtype and shape by name, in the order of the file.
        about: What else the head says.
    """
    fields: dict[str, Any] = {_ABOUT: dict(about)}
    ends = [0]
    for name, (dtype, shape) in tensors.items():
        ends.append(ends[-1] + math.prod(shape) * dtype.itemsize)
        fields[name] = {"dtype": code_of(name, dtype), "shape": list(shape), "data_offsets": ends[-2:]}
    text = json.dumps(fields, separators=(",", ":")).encode("ascii")
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    return head, [(len(head) + start, len(head) + stop) for start, stop in pairwise(ends)]


@dataclass
class _Content:
    """The bytes of a file, made anew each time they are asked for."""

    header: bytes
    places: list[tuple[int, int]]
    pieces: Sequence[Piece]
    crcs: list[list[int]] = field(default_factory=list)

    def blocks(self) -> Iterator[memoryview]:
        """What to write, in order. Each is gone when the next is asked for."""
        size = self.places[-1][1]
        if size <= _BUFFER:
            yield from self._filled([_Buffer(size)])
            return
        buffers = [_Buffer.spare(_BUFFER), _Buffer.spare(_BUFFER)]
        try:
            yield from _ahead(self._filled(buffers))
        finally:
            _spare.extend(buffers)

    def digest(self) -> Digest:
        hashed = hashlib.sha256(self.header)
        for crcs in self.crcs:
            hashed.update(b"".join(crc.to_bytes(4, "little") for crc in crcs))
        return Digest(self.places[-1][1], hashed.hexdigest(), layout.OF_SHARDS)

    def _filled(self, buffers: list["_Buffer"]) -> Iterator[memoryview]:
        self.crcs = [[] for _ in self.pieces]
        turn, at = 0, 0
        for address, size, crcs in self._sources():
            done, crc = 0, 0
            while done < size:
                buffer = buffers[turn]
                count = min(size - done, buffer.size - at, _CHUNK, index.BLOCK - done % index.BLOCK)
                crc = buffer.put(at, address + done, count, crc)
                done, at = done + count, at + count
                if done % index.BLOCK == 0 or done == size:
                    crcs.append(crc)
                    crc = 0
                if at == buffer.size:
                    yield buffer.memory
                    turn, at = (turn + 1) % len(buffers), 0
        if at:
            yield buffers[turn].memory[:at]

    def _sources(self) -> Iterator[tuple[int, int, list[int]]]:
        head = ctypes.create_string_buffer(self.header, len(self.header))
        yield ctypes.addressof(head), len(self.header), []
        for piece, crcs in zip(self.pieces, self.crcs, strict=True):
            tensor = _on_host(piece)
            yield tensor.data_ptr(), piece.nbytes, crcs


class _Buffer:
    """Memory that a disk can be written from directly, as it starts at a page."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, max(1, -(-size // PAGE)) * PAGE)
        self.size = size
        self.memory = memoryview(self._map)[:size]
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    @classmethod
    def spare(cls, size: int) -> "_Buffer":
        """One that was used before, if there is one: memory that is new costs several times a copy."""
        try:
            while (buffer := _spare.pop()).size != size:
                pass
        except IndexError:
            return cls(size)
        return buffer

    def put(self, at: int, source: int, count: int, crc: int) -> int:
        """Copy bytes from an address and go on with their checksum, both without the interpreter's lock."""
        ctypes.memmove(self._address + at, source, count)
        return zlib.crc32(self.memory[at : at + count], crc)


_spare: list[_Buffer] = []


def _ahead(blocks: Iterator[memoryview]) -> Iterator[memoryview]:
    """Fill the next while the one before is being written."""
    with ThreadPoolExecutor(1, thread_name_prefix="stratrun-fill") as pool:
        coming = pool.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = pool.submit(next, blocks, None)
            yield block


def _on_host(piece: Piece) -> Tensor:
    tensor = piece.data().detach()
    if tuple(tensor.shape) != piece.shape or tensor.dtype != piece.dtype:
        raise CheckpointError(
            f"{piece.name!r} was planned as {piece.dtype} of {list(piece.shape)} and is {tensor.dtype} of "
            f"{list(tensor.shape)}; did it change while it was saved?"
        )
    return tensor.cpu().resolve_conj().resolve_neg().contiguous()
