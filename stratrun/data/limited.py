"""Fewer batches than there are: `limit_batches` and `overfit_batches`."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from stratrun.data.order import Share
from stratrun.data.source import Cursor, Setting, Source
from stratrun.errors import ConfigError, DataError


class Limit(NamedTuple):
    """How much of a loader is read."""

    batches: int | float
    """So many batches of each rank in an epoch; of a float, that share of them, at least one."""
    same: bool = False
    """Whether they are the same in each epoch."""


class LimitedSource(Source):
    """The first batches of each epoch of another source.

    In training, an epoch of data without length is taken to have as many as the limit says, so that what
    goes by the length of the training knows it.
    """

    def __init__(self, source: Source, limit: int | float, setting: Setting) -> None:
        """
        Raises:
            ConfigError: the limit is a share of what has no length.
        """
        self._source = source
        self._limit = limit
        self._setting = setting
        self.kind: str = source.kind
        self.dataset: Any = source.dataset
        self._found = (-1, 0)
        self._told = False
        if isinstance(limit, float) and source.length(0) is None:
            raise ConfigError(no_share(setting.name, limit))

    @property
    def shared_out(self) -> bool:
        return self._source.shared_out

    @property
    def ends_alone(self) -> bool:
        return self._source.ends_alone

    @property
    def ahead(self) -> bool:
        return self._source.ahead

    @property
    def uneven(self) -> bool:
        return self._source.uneven

    def start(self, cursor: Cursor) -> Iterator[tuple[Any, Share]]:
        source, left = self._source, max(self.limit(cursor.epoch) - cursor.batches, 0)
        source.most = left
        try:
            batches = source.start(cursor)
        finally:
            source.most = None
        return self._first(batches, left, cursor.batches)

    def left(self, cursor: Cursor) -> int | None:
        left = self._source.left(cursor)
        if left is None and not self._setting.train:
            return None
        most = max(self.limit(cursor.epoch) - cursor.batches, 0)
        return most if left is None else min(left, most)

    def lengths(self, cursor: Cursor) -> list[int | None]:
        lengths = self._source.lengths(cursor)
        return lengths if len(lengths) > 1 else [self.left(cursor)]

    def limit(self, epoch: int) -> int:
        if isinstance(self._limit, int):
            return self._limit
        if self._found[0] != epoch:
            length = self._source.length(epoch)
            # Rounded first, as 0.29 of 100 is not to be 28.
            self._found = epoch, max(int(round(self._limit * (length or 0), 6)), 1)
        return self._found[1]

    def length(self, epoch: int) -> int | None:
        length = self._source.length(epoch)
        return length if length is None else min(length, self.limit(epoch))

    def pass_done(self) -> None:
        self._source.pass_done()

    def describe(self) -> str:
        number = self.limit(0)
        batches = f"batch{'es' * (number > 1)}"
        if self._setting.same:
            return f"{self._source.describe()}; of these the same {number} {batches} in each epoch"
        share = f" ({self._limit:g} of all)" if isinstance(self._limit, float) else ""
        return f"{self._source.describe()}; of these the first {number} {batches}{share}"

    def state(self, cursor: Cursor) -> dict[str, Any]:
        return self._source.state(cursor)

    def go_on(self, state: Mapping[str, Any], cursor: Cursor) -> str:
        then = _global_batches(state)
        told = self._source.go_on(state, cursor)
        self._found = (-1, 0)
        now = _global_batches(self._source.state(cursor))
        if cursor.batches and then != now:
            raise DataError(
                f"{self._setting.name}: the checkpoint was taken within an epoch of a limited number of "
                f"batches, which were of {_shown(then)} samples over all ranks and are of {_shown(now)} now, "
                "so that where it ends cannot be told; resume with the same, or give global_batch_size in "
                "place of batch_size"
            )
        return told

    def indices(self, epoch: int, positions: Sequence[int]) -> Sequence[int] | None:
        return self._source.indices(epoch, positions)

    def reseed(self, seed: int) -> None:
        self._found = (-1, 0)
        self._source.reseed(seed)

    def close(self) -> None:
        self._source.close()

    def _first(
        self, batches: Iterator[tuple[Any, Share]], left: int, done: int
    ) -> Iterator[tuple[Any, Share]]:
        found = 0
        for drawn in islice(batches, left):
            found += 1
            yield drawn
        if found < left and self._setting.train and not self._told and self._source.length(0) is None:
            self._told = True
            warnings.warn(
                f"{self._setting.name}: an epoch ended after {done + found} batches, before the "
                f"{done + left} that it was limited to, by which schedules go; lower the limit",
                stacklevel=3,
            )


def no_share(name: str, share: float) -> str:
    return (
        f"{name}: {share:g} of an epoch of it cannot be told, as it has no length; give a number of "
        "batches, such as 100"
    )


def _global_batches(state: Mapping[str, Any]) -> list[Any]:
    """Samples of a batch over all ranks, of each loader; None where it is not ours to share them out."""
    return [one.get("global_batch") for one in (state.get("parts") or {"": state}).values()]


def _shown(sizes: Sequence[Any]) -> str:
    return " and ".join(map(str, sizes))
