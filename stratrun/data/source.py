"""Where batches come from: the seam between `Feed` and the kinds of loader."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from stratrun.data.order import Share
from stratrun.errors import DataError

T = TypeVar("T")


@dataclass(slots=True)
class Cursor:
    """A position in the data, the same on every rank. It counts finished work."""

    epoch: int = 0
    consumed: int = 0
    """Samples of the epoch that all ranks together are done with."""
    batches: int = 0
    """Batches of the epoch that each rank is done with."""
    parts: Any = None
    """Where each of several loaders stands. See `Standing`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a source must know of the run.

    `name` is what the user calls the data, for messages.
    """

    name: str
    train: bool
    seed: int
    rank: int
    world_size: int
    pin_memory: bool
    same: bool = False
    """Whether every epoch of training has the batches of the first."""

    def order_of(self, epoch: int) -> int:
        """The epoch whose order an epoch has. Evaluation always has the same, so that results compare."""
        return epoch if self.train and not self.same else 0

    @property
    def purpose(self) -> str:
        return "train" if self.train else "evaluation"


class Source(ABC):
    """Batches from any position of an epoch.

    It decides in which order samples come, how they are read, and what a rank gets of them. It does
    not keep the position, nor know of devices.
    """

    kind: str
    """What a position in it is a position in: one within an epoch means nothing to another kind."""
    dataset: Any = None
    most: int | None = None
    """How many batches of the pass that is started next will be read at most; None for all."""
    _seed: int

    @property
    def shared_out(self) -> bool:
        """Whether each batch is a share of a global one, so that its `advance` tells which ranks have one."""
        return False

    @property
    def ends_alone(self) -> bool:
        """Whether each rank reads data of its own, the end of which nobody knows beforehand."""
        return False

    @property
    def ahead(self) -> bool:
        """Whether a batch may be read before the one handed out last is done, without a trace in the run."""
        return False

    @property
    def uneven(self) -> bool:
        """Whether ranks are known to get unequal parts of some batch."""
        return False

    @abstractmethod
    def start(self, cursor: Cursor) -> Iterator[tuple[Any, Share]]:
        """The rest of the cursor's epoch, beginning at its position. `cursor` is read at once."""

    @abstractmethod
    def left(self, cursor: Cursor) -> int | None:
        """Batches of this rank from the position to the end of the epoch; None when unknown."""

    def length(self, epoch: int) -> int | None:
        """Batches of an epoch, where we share it out of the rank that has most; None when unknown."""
        return self.left(Cursor(epoch))

    def limit(self, epoch: int) -> int | None:
        """How many batches of an epoch are read, where that is limited."""
        return None

    def lengths(self, cursor: Cursor) -> list[int | None]:
        """What is left of each of the loaders, which every rank must have as much of."""
        return [self.left(cursor)]

    def pass_done(self) -> None:
        """Take note that a pass has ended within an epoch, so that what comes next begins another."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """One line on what is read, in which order, in what batches."""

    def state(self, cursor: Cursor) -> dict[str, Any]:
        """What, beside the cursor, decides which samples are still to come. Equal on every rank,
        except under the key `loader`."""
        return {}

    def go_on(self, state: Mapping[str, Any], cursor: Cursor) -> str:
        """Take back what `state` returned, on any number of ranks.

        Returns:
            What the user should know that is other than it was; empty when all is the same.

        Raises:
            DataError: from `cursor` on, the data would not be what it was when the state was saved.
        """
        return ""

    def hold(self, cursor: Cursor) -> None:
        """Have `state` tell where to come back to in this process, even before the first batch."""
        return None

    def indices(self, epoch: int, positions: Sequence[int]) -> Sequence[int] | None:
        """Which samples of the data set are at these positions of an epoch; None where that is not known."""
        return None

    def reseed(self, seed: int) -> None:
        """Draw as a run with this seed does, from the next epoch or evaluation on."""
        self._seed = seed

    def close(self) -> None:
        """End the workers. They are started again on demand."""
        return None


def enter_epoch(part: Any, epoch: int) -> None:
    """Tell a sampler, loader or data set the epoch, if it wants to know."""
    if hasattr(part, "set_epoch"):
        part.set_epoch(epoch)


def other_batches(then: int | None, now: int, unit: str = "samples") -> str:
    """What to tell when a global batch is larger or smaller than in the run that was saved."""
    if then in (None, now):
        return ""
    return f"a global batch was {then} {unit}, and is {now} from here on"


def refuse_other_data(what: str, then: object, now: object, cursor: Cursor, setting: Setting) -> None:
    """Raises DataError where data is not what it was, and the position lies within an epoch."""
    if cursor.batches and then != now:
        done = f"sample {cursor.consumed}" if cursor.consumed else f"batch {cursor.batches}"
        raise DataError(
            f"{setting.name}: the checkpoint was taken at {done} of an epoch "
            f"with {what}={then!r}, and now {what}={now!r}: the rest of that epoch cannot be told; "
            "restore the data as it was, or take the weights only, with load_from"
        )


def ended_early(position: int, found: int, unit: str, setting: Setting) -> DataError:
    """What to raise where data ends before the position that was to be gone on from."""
    return DataError(
        f"{setting.name}: the checkpoint was taken after {position} {unit} of an epoch, and the data now "
        f"ends after {found}: the rest of that epoch cannot be told; restore the data as it was, or take "
        "the weights only, with load_from"
    )


def from_batch(batches: Iterator[T], position: int, done: int, setting: Setting) -> Iterator[T]:
    """What is left after `position` batches of an epoch, `done` of which `batches` leaves out.

    Raises:
        DataError: there are fewer.
    """
    skipped = done + sum(1 for _ in islice(batches, position - done))
    if skipped < position:
        raise ended_early(position, skipped, "batches", setting)
    yield from batches


def refuse_other_ranks(what: str, state: Mapping[str, Any], cursor: Cursor, setting: Setting) -> None:
    """Raises DataError where a position within an epoch means something to as many ranks only."""
    then = state.get("world_size", setting.world_size)
    if cursor.batches and then != setting.world_size:
        raise DataError(
            f"{setting.name}: the checkpoint was taken within an epoch on {then} ranks, and the order comes "
            f"from {what}, so that its place on {setting.world_size} cannot be told; resume on {then} ranks, "
            "or leave the order to stratrun by giving a data set without sampler"
        )
