"""One of several loaders: its source, and where it stands in an epoch that all have in common."""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stratrun.data.ending import DataEnd
from stratrun.data.order import Share
from stratrun.data.source import Cursor, Setting, Source
from stratrun.errors import DataError
from stratrun.seed import derive_seed


class Place(NamedTuple):
    """Where one loader stands: how often it has ended in this epoch, and what it has given since."""

    passes: int = 0
    consumed: int = 0
    batches: int = 0

    def cursor(self, epoch: int) -> Cursor:
        return Cursor(epoch, self.consumed, self.batches)


class Standing(NamedTuple):
    """Where all of them stand. The same on every rank."""

    turn: int
    """Whose turn it is, where they take turns."""
    places: tuple[Place, ...]


class Origin(NamedTuple):
    """Where a batch of several loaders comes from."""

    loader: str | None
    """The loader; None where all have given of it."""
    before: Standing
    """Where they stood before it. One that had ended by then stands at the beginning of its next pass."""
    after: Standing


class Part:
    """A loader, read from a place on.

    Args:
        end: Ends a pass on all ranks together, where each reads data of its own.
    """

    def __init__(self, name: str, source: Source, setting: Setting, end: DataEnd | None) -> None:
        self.name = name
        self.source = source
        self.setting = setting
        self._end = end
        self.place: Place = Place()
        self._seed = self._epoch = 0
        # The rest of the pass, once it has begun. As for a `Reader`: what the cycle collector finds with
        # workers has them joined, so it is let go from here.
        self._batches: list[Iterator[tuple[Any, Share]]] = []
        weakref.finalize(self, self._batches.clear).atexit = False

    def enter(self, seed: int, epoch: int, place: Place) -> None:
        """Be read from `place` on. Nothing is read yet."""
        self._batches.clear()
        self._seed, self._epoch, self.place = seed, epoch, place

    def next(self) -> tuple[Any, Share] | None:
        """The next batch; None at the end of the pass, on all ranks alike."""
        if not self._batches:
            self._batches.append(self._started())
        drawn = next(self._batches[0], None)
        if drawn is not None:
            passes, consumed, batches = self.place
            self.place = Place(passes, consumed + drawn[1].advance, batches + 1)
        return drawn

    def ended(self) -> None:
        """To the beginning of the next pass, as this one has given all it has."""
        self._batches.clear()
        self.place = Place(self.place.passes + 1)

    def again(self) -> tuple[Any, Share]:
        """The first batch of a pass after one that has ended.

        Raises:
            DataError: there is none.
        """
        self.source.pass_done()
        drawn = self.next()
        if drawn is None:
            raise DataError(
                f"{self.setting.name} ended without a batch when it was to begin again; give data that can "
                "be read more than once"
            )
        return drawn

    def left(self, epoch: int, place: Place) -> int | None:
        return self.source.left(place.cursor(epoch))

    def close(self) -> None:
        self._batches.clear()
        self.source.close()

    def indices(self, epoch: int, passes: int, positions: Sequence[int]) -> Sequence[int] | None:
        """Which samples of its data set are at these positions of a pass."""
        self.source.reseed(self._seed_of(passes))
        try:
            return self.source.indices(epoch, positions)
        finally:
            self.source.reseed(self._seed_of(self.place.passes))

    def _started(self) -> Iterator[tuple[Any, Share]]:
        source, place = self.source, self.place
        # Another order for each loader, and in each pass.
        source.reseed(self._seed_of(place.passes))
        batches = source.start(place.cursor(self._epoch))
        if self._end is None or not source.ends_alone:
            return batches
        return self._end.over(batches, place.batches, ahead=source.ahead)

    def _seed_of(self, passes: int) -> int:
        return derive_seed(self._seed, "loader", self.name, passes)
