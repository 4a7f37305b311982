"""How a run is divided over its ranks: whose own state is whose, where another one goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
_NOTED = "division"


@dataclass(frozen=True, slots=True)
class Division:
    """What decides which of the states that ranks have saved for themselves a rank goes on with."""

    ranks: int = 1
    per_batch: int = 1
    """How many neighbouring ranks have the same samples, and so the same generators and sums."""
    shares_gradients: bool = False
    """Whether gradients of an open accumulation window are part of what all ranks have in common."""

    @classmethod
    def of(cls, meta: Mapping[str, Any], ranks: int) -> "Division":
        """That of the run that has saved, of what was noted; trusting none of it."""
        noted = meta.get(_NOTED)
        noted = noted if isinstance(noted, dict) else {}
        each, shares = noted.get("per_batch", 1), noted.get("shares_gradients", False)
        fits = type(each) is int and 0 < each <= ranks and ranks % each == 0
        return cls(ranks, each if fits else 1, shares is True)

    def noted(self) -> dict[str, Any]:
        """What to note beside the state; nothing where that is how most runs are."""
        if self.per_batch == 1 and not self.shares_gradients:
            return {}
        return {_NOTED: {"per_batch": self.per_batch, "shares_gradients": self.shares_gradients}}

    @property
    def batches(self) -> int:
        """How many parts the samples of an iteration are shared out in."""
        return self.ranks // self.per_batch

    def same_ranks(self, saved: "Division") -> bool:
        """Whether each rank does what the one of its number did."""
        return (self.ranks, self.per_batch) == (saved.ranks, saved.per_batch)

    def own(self, saved: "Division", states: Sequence[T], rank: int) -> T | None:
        """The state that a rank goes on with: its own, or that of one which had the same samples."""
        if not self.same_ranks(saved):
            rank = rank // self.per_batch * saved.per_batch
        return states[rank] if rank < len(states) else None

    def every(self, saved: "Division", states: Sequence[T]) -> Sequence[T]:
        """One state of each part of the samples, where what they have in common is shared out anew."""
        parted = self.shares_gradients and not saved.shares_gradients
        return states[:: saved.per_batch] if parted or self.batches != saved.batches else []
