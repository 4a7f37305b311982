"""How long a training is, as schedules count it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isinf


@dataclass(frozen=True, slots=True)
class Extent:
    """How long a training is; None for what is not known before it."""

    epochs: int | None = None
    updates: int | None = None
    updates_per_epoch: int | None = None
    ends: tuple[int, ...] | None = None
    """After how many updates each whole epoch ends, where epochs have not all as many."""

    @classmethod
    def of_epochs(cls, epochs: int, batches: int | None, accumulate: int) -> "Extent":
        """A training of whole epochs of so many batches, each of which ends an accumulation window."""
        if batches is None:
            return cls(epochs=epochs)
        each = -(-batches // accumulate)
        return cls(epochs, epochs * each, each)

    @classmethod
    def of_iters(cls, iters: int, batches: int | None, accumulate: int) -> "Extent":
        """A training of so many batches, passing over an epoch of `batches` as often as that takes."""
        if not batches:
            return cls(updates=iters if accumulate == 1 else None)
        each = -(-batches // accumulate)
        whole, rest = divmod(iters, batches)
        return cls(whole + bool(rest), whole * each - (-rest // accumulate), each)

    def epoch_ends(self) -> Sequence[int]:
        """After how many updates each whole epoch ends; none where that is unknown."""
        if self.ends is not None:
            return self.ends
        each = self.updates_per_epoch
        return () if each is None else range(each, (self.updates or 0) + 1, each)

    def updates_at(self, epochs: float) -> float | None:
        """How many updates come before so many epochs are over; after the last they go on as in that."""
        if self.ends is None:
            return None if self.updates_per_epoch is None else epochs * self.updates_per_epoch
        if not self.ends:
            return None
        whole = len(self.ends) - 1 if isinf(epochs) else min(int(epochs), len(self.ends) - 1)
        begin = self.ends[whole - 1] if whole else 0
        return begin + (epochs - whole) * (self.ends[whole] - begin)
