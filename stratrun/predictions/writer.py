"""Predictions to files while they come: each process its own, and one index for all."""

import hashlib
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from stratrun.errors import StratrunError
from stratrun.predictions.formats import format_called
from stratrun.predictions.index import INDEX, Index, Part, names_in, runs_of
from stratrun.storage import Folder

T = TypeVar("T")
_PART = re.compile(r"part-[0-9a-f]{8}-\d{5,}-\d{5,}\.\w+")


class Exchange(Protocol):
    """What writers ask of each other."""

    @property
    def rank(self) -> int: ...
    @property
    def is_main(self) -> bool: ...
    def from_main(self, value: T) -> T: ...
    def gather(self, value: T) -> list[T]: ...
    def agree(self, error: Exception | None, what: str) -> None: ...


class PredictionWriter:
    """Files of predictions in a folder, none of which counts before `commit`.

    Every rank makes one, and calls `commit` or none does. What the folder held before is valid until then,
    and removed afterwards.

    Args:
        rows: How many predictions a file has at most.
        size: How many bytes of them are held at most, but for a single larger one.
        counts: Whether what this rank predicts is wanted; not, where another has the same samples.
    """

    def __init__(
        self, folder: Folder, ranks: Exchange, *, format: str, rows: int, size: int, counts: bool = True
    ) -> None:
        self._kind = format_called(format)
        self._format = format
        self._folder = folder
        self._ranks = ranks
        self._limits = rows, size
        self._counts = counts
        self._shard, self._places = self._kind(), list[int]()
        self._parts: list[Part] = []
        self._by_sample = True
        self._token = ranks.from_main(secrets.token_hex(4))
        self._try("opening", lambda: folder.probe(self._token) if ranks.is_main else None)

    @property
    def held(self) -> int:
        """How many predictions are in memory."""
        return len(self._shard)

    def add(self, rows: Iterable[tuple[int, Any]], *, by_sample: bool) -> None:
        """Take predictions with their places; writes a file whenever enough have come.

        Args:
            by_sample: Whether the places are numbers of samples.
        """
        if not self._counts:
            return
        most, size = self._limits
        for place, prediction in rows:
            self._by_sample &= by_sample
            self._shard.add(prediction)
            self._places.append(place)
            if len(self._shard) >= most or self._shard.size >= size:
                self._write()

    def commit(self) -> tuple[str, int]:
        """Write what is left and then the index. Returns where it all is, and how many there are.

        Raises:
            StratrunError: some rank could not; on all of them, and what was there before still counts.
        """
        self._try("writing", lambda: self._write() if len(self._shard) else None)
        gathered = self._ranks.gather((self._parts, self._by_sample))
        parts = tuple(part for one, _ in gathered for part in one)
        index = Index(self._format, all(by_sample for _, by_sample in gathered), parts)
        self._try("committing", lambda: self._finish(index) if self._ranks.is_main else None)
        self._parts = []
        return self._folder.url, index.rows

    def discard(self) -> None:
        """Remove what this rank has written, as nobody will read it. Never raises."""
        self._shard, self._places = self._kind(), []
        for part in self._parts:
            with suppress(OSError, StratrunError):
                self._folder.remove(part.name)
        self._parts = []

    def _write(self) -> None:
        order = sorted(range(len(self._places)), key=self._places.__getitem__)
        data = self._shard.encode(order)
        name = f"part-{self._token}-{self._ranks.rank:05d}-{len(self._parts):05d}{self._shard.suffix}"
        self._folder.write_bytes(name, data)
        places = runs_of([self._places[i] for i in order])
        digest = hashlib.sha256(data).hexdigest()
        self._parts.append(Part(name, len(order), len(data), digest, places))
        self._shard, self._places = self._kind(), []

    def _finish(self, index: Index) -> None:
        folder, local = self._folder, self._folder.local_path()
        if local is None:
            folder.write_bytes(INDEX, index.to_bytes())
        else:
            beside = f".{INDEX}-{self._token}"
            folder.write_bytes(beside, index.to_bytes())
            os.replace(local / beside, local / INDEX)
            folder.sync()
        # Only now, as what the last index named was good until this one.
        for name in set(folder.names()) - names_in(index.parts):
            if _PART.fullmatch(name):
                folder.remove(name)

    def _try(self, doing: str, work: Any) -> None:
        error: Exception | None = None
        try:
            work()
        except Exception as caught:
            error = caught
        self._ranks.agree(error, f"{doing} predictions in {self._folder}")
