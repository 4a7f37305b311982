"""The index: of which boxes each tensor is made, and where their bytes lie. All of it untrusted when read."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stratrun.checkpoint import layout
from stratrun.checkpoint.layout import Digest
from stratrun.errors import CheckpointCorruptedError

BLOCK = 4 << 20
"""Bytes of a slice that one checksum covers: what must be read at least to verify any of them."""
# More would have a forged index choose how much memory is taken at once.
_LARGEST_BLOCK = 64 << 20
_MOST_DIMENSIONS = 64
_WIDTHS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 1),
}


@dataclass(frozen=True, slots=True)
class Slice:
    """A box of a tensor: its place in the tensor, the place of its bytes, a checksum of each block."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int
    crc32: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor, as a whole."""

    dtype: str
    shape: tuple[int, ...]
    slices: tuple[Slice, ...]

    @property
    def nbytes(self) -> int:
        return sum(place.stop - place.start for place in self.slices)


@dataclass(frozen=True, slots=True)
class Index:
    """All tensors of a checkpoint."""

    tensors: Mapping[str, Entry]
    block: int = BLOCK

    def to_json(self) -> bytes:
        tensors = {
            name: {"dtype": entry.dtype, "shape": entry.shape, "slices": [_fields(s) for s in entry.slices]}
            for name, entry in self.tensors.items()
        }
        return layout.to_json({"block": self.block, "tensors": tensors})

    @classmethod
    def parse(cls, fields: Mapping[str, Any], files: Mapping[str, Digest]) -> "Index":
        """Build from JSON, trusting none of it.

        Raises:
            CheckpointCorruptedError: it is no index of these files, or leaves bytes of one of
                them to no tensor or to two.
        """
        try:
            block = _natural(fields["block"])
            if not 0 < block <= _LARGEST_BLOCK:
                raise ValueError(f"a block of {block} bytes")
            tensors = {name: _entry(tensor, block) for name, tensor in fields["tensors"].items()}
            if len(fields) != 2:
                raise ValueError("it has more than a block and tensors")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointCorruptedError(f"{layout.INDEX} is not one: {error!r}") from error
        made = cls(tensors, block)
        made._check_places({name: digest for name, digest in files.items() if layout.is_shard(name)})
        return made

    def in_files(self) -> dict[str, list[Slice]]:
        """The slices of each file, in the order of their bytes."""
        found: dict[str, list[Slice]] = defaultdict(list)
        for entry in self.tensors.values():
            for place in entry.slices:
                found[place.file].append(place)
        return {file: sorted(found[file], key=lambda s: (s.start, s.stop)) for file in sorted(found)}

    def _check_places(self, files: Mapping[str, Digest]) -> None:
        by_file = self.in_files()
        if by_file.keys() != files.keys():
            odd = min(by_file.keys() ^ files.keys())
            whose = layout.MANIFEST if odd in by_file else layout.INDEX
            raise CheckpointCorruptedError(f"{whose} does not know the file {odd[:100]!r}")
        for file, slices in by_file.items():
            at = slices[0].start
            for place in slices:
                if place.start != at:
                    kind = "two tensors at" if place.start < at else "no tensor before"
                    raise CheckpointCorruptedError(
                        f"{layout.INDEX} places {kind} byte {place.start} of {file}"
                    )
                at = place.stop
            if at != files[file].size:
                size = files[file].size
                raise CheckpointCorruptedError(f"{layout.INDEX} ends at byte {at} of the {size} of {file}")


def _fields(place: Slice) -> dict[str, Any]:
    return {
        "offsets": place.offsets,
        "shape": place.shape,
        "file": place.file,
        "start": place.start,
        "stop": place.stop,
        "crc32": place.crc32,
    }


def _entry(fields: Mapping[str, Any], block: int) -> Entry:
    shape, width = _naturals(fields["shape"]), _WIDTHS[fields["dtype"]]
    slices = tuple(_slice(place, shape, width, block) for place in fields["slices"])
    if len(fields) != 3 or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} dimensions and {len(fields)} fields")
    if sum(math.prod(place.shape) for place in slices) != math.prod(shape) or not slices:
        raise ValueError(f"slices that do not make up {shape}")
    _refuse_overlaps([place for place in slices if place.stop > place.start])
    return Entry(fields["dtype"], shape, slices)


def _slice(fields: Mapping[str, Any], whole: tuple[int, ...], width: int, block: int) -> Slice:
    made = Slice(
        _naturals(fields["offsets"]),
        _naturals(fields["shape"]),
        fields["file"],
        _natural(fields["start"]),
        _natural(fields["stop"]),
        _naturals(fields["crc32"]),
    )
    size = made.stop - made.start
    if type(made.file) is not str or len(fields) != 6:
        raise ValueError(f"a slice in the file {made.file!r} with {len(fields)} fields")
    if size != math.prod(made.shape) * width or len(made.crc32) != -(-size // block):
        raise ValueError(f"{size} bytes and {len(made.crc32)} checksums for {made.shape}")
    if not len(made.offsets) == len(made.shape) == len(whole):
        raise ValueError(f"a slice of {len(made.shape)} dimensions in a tensor of {len(whole)}")
    if any(at + size > end for at, size, end in zip(made.offsets, made.shape, whole, strict=True)):
        raise ValueError(f"a slice that ends outside {whole}")
    return made


def _refuse_overlaps(slices: Sequence[Slice]) -> None:
    """With the sum of their sizes right, boxes that do not overlap leave no gap either."""
    if len(slices) < 2:
        return
    along = max(range(len(slices[0].shape)), key=lambda d: len({place.offsets[d] for place in slices}))
    active: list[Slice] = []
    for place in sorted(slices, key=lambda place: place.offsets[along]):
        active = [
            other for other in active if other.offsets[along] + other.shape[along] > place.offsets[along]
        ]
        if any(_overlap(place, other) for other in active):
            raise ValueError("slices that overlap")
        active.append(place)


def _overlap(one: Slice, other: Slice) -> bool:
    boxes = zip(one.offsets, one.shape, other.offsets, other.shape, strict=True)
    return all(a < b + m and b < a + n for a, n, b, m in boxes)


def _naturals(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(_natural(value) for value in values)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} where a whole number of at least 0 must be")
    return value
