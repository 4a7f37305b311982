"""Tensors in safetensors files: written and read in one pass, each byte checked on its way.

The seam to what is to come: a sharded strategy's tensors go through here too, only that it
decides what lies in which file. Reading follows the index of the checkpoint, never the file's own
header, so the parts that are wanted can be fetched and checked alone.
"""

import ctypes
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from stratrun.errors import CheckpointCorruptedError, CheckpointError
from stratrun.storage import Folder

_DTYPES: dict[torch.dtype, str] = {
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
_BY_CODE = {code: dtype for dtype, code in _DTYPES.items()}
# Digests are taken of a chunk while it is still in the processor's cache.
_CHUNK = 1 << 20
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file must turn out to be."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Slice:
    """Where the bytes of a tensor lie, and what they must turn out to be."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    crc32: int

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> "Slice":
        """Build from JSON, trusting none of it.

        Raises:
            ValueError, TypeError, KeyError: it does not describe a tensor.
        """
        numbers = [fields["start"], fields["stop"], fields["crc32"], *fields["shape"]]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("sizes and places must be whole numbers of at least 0")
        made = cls(**{**fields, "shape": tuple(fields["shape"])})
        if made.stop - made.start != math.prod(made.shape) * _BY_CODE[made.dtype].itemsize:
            raise ValueError(f"{made.stop - made.start} bytes do not hold a {made.dtype} of {made.shape}")
        return made


def write_shard(folder: Folder, file: str, tensors: Mapping[str, Tensor]) -> tuple[Digest, dict[str, Slice]]:
    """Write one file, taking tensors off their device one at a time."""
    # By falling width, so that each starts at a multiple of its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, places = _header({name: tensors[name] for name in order})
    digest, slices = hashlib.sha256(header), {}
    with folder.open(file, "wb") as stream:
        stream.write(header)
        for name in order:
            crc = 0
            for chunk in _chunks(tensors[name]):
                digest.update(chunk)
                crc = zlib.crc32(chunk, crc)
                stream.write(chunk)
            code, (start, stop) = _DTYPES[tensors[name].dtype], places[name]
            slices[name] = Slice(file, code, tuple(tensors[name].shape), start, stop, crc)
    return Digest(max((s.stop for s in slices.values()), default=len(header)), digest.hexdigest()), slices


def read_shard(
    folder: Folder, file: str, slices: Mapping[str, Slice], whole: Digest | None
) -> dict[str, Tensor]:
    """Read the tensors of one file.

    Args:
        slices: What to read, all of it in `file`.
        whole: The digest of the file, to read and check every byte of it; None reads only
            the bytes of `slices` and checks those.

    Raises:
        CheckpointCorruptedError: the bytes are not those that were written.
    """
    tensors: dict[str, Tensor] = {}
    with folder.open(file) as stream:
        reader = _Reader(stream, file, hash_all=whole is not None)
        for name, place in sorted(slices.items(), key=lambda item: (item[1].start, item[1].stop)):
            reader.skip_to(place.start)
            tensors[name] = tensor = _empty(name, place)
            if reader.read(_memory(tensor)) != place.crc32:
                raise CheckpointCorruptedError(f"{file} is damaged: the checksum of {name!r} does not match")
        if whole is not None:
            reader.finish(whole)
    return tensors


def _empty(name: str, place: Slice) -> Tensor:
    try:
        return torch.empty(place.shape, dtype=_BY_CODE[place.dtype])
    except (RuntimeError, TypeError, OverflowError) as error:  # no bytes, but sizes beyond all bounds
        raise CheckpointCorruptedError(f"{name!r} has a shape that no tensor has: {place.shape}") from error


class _Reader:
    """A stream that is read forwards, hashing what goes by."""

    def __init__(self, stream: BinaryIO, file: str, *, hash_all: bool) -> None:
        self._stream = stream
        self._file = file
        self._digest = hashlib.sha256() if hash_all else None
        self._at = 0

    def read(self, into: memoryview) -> int:
        """Fill the memory and return the crc32 of it."""
        crc = 0
        for start in range(0, len(into), _CHUNK):
            chunk = into[start : start + _CHUNK]
            done = 0
            while done < len(chunk):
                count = self._stream.readinto(chunk[done:])  # type: ignore[attr-defined]
                if not count:
                    raise CheckpointCorruptedError(f"{self._file} is cut short at byte {self._at + done}")
                done += count
            self._at += done
            crc = zlib.crc32(chunk, crc)
            if self._digest is not None:
                self._digest.update(chunk)
        return crc

    def skip_to(self, place: int) -> None:
        if place < self._at:
            raise CheckpointCorruptedError(f"the index places two tensors at byte {place} of {self._file}")
        if self._digest is None:
            self._stream.seek(place)
            self._at = place
        buffer = memoryview(bytearray(min(_CHUNK, place - self._at)))
        while self._at < place:
            self.read(buffer[: place - self._at])

    def finish(self, whole: Digest) -> None:
        self.skip_to(max(whole.size, self._at))
        if self._at != whole.size or self._stream.read(1):
            raise CheckpointCorruptedError(f"{self._file} is longer than the {whole.size} bytes written")
        if self._digest is not None and self._digest.hexdigest() != whole.sha256:
            raise CheckpointCorruptedError(f"{self._file} is damaged: its digest does not match")


def _header(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The head of a safetensors file, and where each tensor lies counted from the file's start."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        code = _DTYPES.get(tensor.dtype)
        if code is None:
            raise CheckpointError(f"{name!r} is of dtype {tensor.dtype}, which safetensors files do not have")
        size = tensor.numel() * tensor.element_size()
        fields[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(fields, separators=(",", ":")).encode("ascii")
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    places = {
        name: (len(head) + field["data_offsets"][0], len(head) + field["data_offsets"][1])
        for name, field in fields.items()
        if name in tensors
    }
    return head, places


def _chunks(tensor: Tensor) -> Iterator[memoryview]:
    on_host = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    memory = _memory(on_host)
    for start in range(0, len(memory), _CHUNK):
        yield memory[start : start + _CHUNK]


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, in place. Valid as long as the tensor is."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        return memoryview(b"")
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")
