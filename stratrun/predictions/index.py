"""Which predictions lie in which file. Written last: without it there are none."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stratrun.errors import DataError
from stratrun.predictions.formats import FORMATS

INDEX = "index.json"
INDEX_LIMIT = 256 << 20
_VERSION = 1

Run = tuple[int, int, int]
"""Places of predictions: the first, the step to the next, and how many."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file. Its predictions are in the order of their places; those of other files may lie between."""

    name: str
    rows: int
    size: int
    sha256: str
    places: tuple[Run, ...]

    @property
    def first(self) -> int:
        return self.places[0][0]

    def each(self) -> Iterator[int]:
        """The place of each of its predictions."""
        for first, step, count in self.places:
            for i in range(count):
                yield first + i * step


@dataclass(frozen=True, slots=True)
class Index:
    """All files of one pass."""

    format: str
    by_sample: bool
    """Whether places are numbers of samples; else of batches, whose samples have no number."""
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    def to_bytes(self) -> bytes:
        told = {
            "version": _VERSION,
            "format": self.format,
            "places": "samples" if self.by_sample else "batches",
            "rows": self.rows,
            "files": [asdict(part) for part in self.parts],
        }
        return json.dumps(told).encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> "Index":
        """
        Raises:
            DataError: it is not as `to_bytes` writes it.
        """
        try:
            told = json.loads(data)
            if told["version"] != _VERSION:
                raise DataError(f"{where} is of version {told['version']!r}, and this reads {_VERSION}")
            parts = tuple(_part(one) for one in told["files"])
            made = cls(str(told["format"]), told["places"] == "samples", parts)
            if made.format not in FORMATS or made.rows != told["rows"]:
                raise ValueError("its numbers do not agree")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{where} is no index of predictions: {type(error).__name__}: {error}") from error
        return made


def runs_of(places: Sequence[int]) -> tuple[Run, ...]:
    """Places in few numbers: those of one process are mostly an arithmetic sequence."""
    runs: list[list[int]] = []
    for place in places:
        last = runs[-1] if runs else None
        if last is not None and (last[2] == 1 or place == last[0] + last[1] * last[2]):
            last[1] = place - last[0] if last[2] == 1 else last[1]
            last[2] += 1
        else:
            runs.append([place, 1, 1])
    return tuple((first, step, count) for first, step, count in runs)


def names_in(parts: Iterable[Part]) -> set[str]:
    return {part.name for part in parts}


def _part(told: Any) -> Part:
    places = tuple((int(first), int(step), int(count)) for first, step, count in told["places"])
    part = Part(str(told["name"]), int(told["rows"]), int(told["size"]), str(told["sha256"]), places)
    if part.rows < 1 or part.rows != sum(count for _, _, count in places):
        raise ValueError(f"{part.name} has not as many places as predictions")
    return part
