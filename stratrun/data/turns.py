"""In which order several loaders give batches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from stratrun.data.order import Share
from stratrun.data.part import Part, Place, Standing
from stratrun.data.samplers import Draws
from stratrun.seed import derive_seed

_UNENDING = 2**62
_CHUNK = 2048


class Drawn(NamedTuple):
    """A batch of one loader, or one of each, by their numbers."""

    before: Standing
    batches: dict[int, tuple[Any, Share]]


class Turns(ABC):
    """Draws the batches of an epoch from loaders, all ranks from the same at the same time."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._turn = 0

    def enter(self, seed: int, epoch: int, standing: Standing) -> None:
        """Go on from here. Nothing is read yet."""
        self._turn = standing.turn
        for part, place in zip(self._parts, standing.places, strict=True):
            part.enter(seed, epoch, place)

    @property
    def standing(self) -> Standing:
        return Standing(self._turn, tuple(part.place for part in self._parts))

    @abstractmethod
    def draw(self, number: int) -> Drawn | None:
        """Batch `number` of the epoch; None at its end."""

    @abstractmethod
    def left(self, number: int, standing: Standing, lefts: Sequence[int], key: tuple[int, int]) -> int:
        """Batches from `number` on.

        Args:
            lefts: Batches that each loader has left in its pass.
            key: Seed and epoch.
        """


class OneAfterAnother(Turns):
    """One loader at a time: by turns, by weight, or each to its end.

    Args:
        until: ``all``: each gives one pass; one that has ended is passed over. ``shortest``: the epoch ends
            when the loader whose turn it is has nothing left. ``longest``: such a loader begins again, until
            each has ended once.
        weights: By which to choose; None for by turns.
        stay: Whether to take turns at the ends of loaders only.
    """

    def __init__(
        self, parts: Sequence[Part], until: str, weights: Sequence[float] | None, *, stay: bool = False
    ) -> None:
        super().__init__(parts)
        self._until = until
        self._weights = weights
        self._stay = stay
        self._choices: dict[tuple[int, ...], Draws] = {}

    def enter(self, seed: int, epoch: int, standing: Standing) -> None:
        super().enter(seed, epoch, standing)
        self._key = (seed, self._parts[0].setting.order_of(epoch))
        self._choices.clear()

    def draw(self, number: int) -> Drawn | None:
        ended: list[Part] = []
        while still := self._still():
            which = self._choose(number, still)
            part, before = self._parts[which], self.standing
            drawn = part.next()
            if drawn is None:
                part.ended()
                if self._until == "shortest" or not self._still():
                    return None
                if self._until == "all":
                    ended.append(part)
                    continue
                before = self.standing
                drawn = part.again()
            for other in ended:
                other.source.pass_done()
            self._turn = which if self._stay else (which + 1) % len(self._parts)
            return Drawn(before, {which: drawn})
        return None

    def left(self, number: int, standing: Standing, lefts: Sequence[int], key: tuple[int, int]) -> int:
        first = [place.passes == 0 for place in standing.places]
        if self._until == "all":
            return sum(left for left, has in zip(lefts, first, strict=True) if has)
        # The turns at which each is found to have ended, counted from the next.
        wanted = dict(enumerate(lefts))
        if self._until == "longest":
            wanted = {which: left for which, left in wanted.items() if first[which]}
        if self._weights is not None:
            return self._after(number, wanted, key)
        several = len(self._parts)
        ends = [(which - standing.turn) % several + several * left for which, left in wanted.items()]
        return (min if self._until == "shortest" else max)(ends, default=0)

    def _still(self) -> list[int]:
        """The loaders that may give a batch; none when the epoch is over."""
        first = [number for number, part in enumerate(self._parts) if not part.place.passes]
        if self._until == "all":
            return first
        return list(range(len(self._parts))) if first else []

    def _choose(self, number: int, still: Sequence[int]) -> int:
        if self._weights is None:
            return next((which for which in still if which >= self._turn), still[0])
        chosen = tuple(still)
        if chosen not in self._choices:
            self._choices[chosen] = self._draws(chosen, self._key)
        return chosen[self._choices[chosen].at(range(number, number + 1))[0]]

    def _draws(self, still: Sequence[int], key: tuple[int, int]) -> Draws:
        """Which of `still` is chosen, by the number of the batch."""
        assert self._weights is not None
        sums = torch.tensor([self._weights[which] for which in still], dtype=torch.float64).cumsum(0)
        return Draws(sums, _UNENDING, derive_seed(key[0], "turns", key[1]))

    def _after(self, number: int, wanted: dict[int, int], key: tuple[int, int]) -> int:
        """How many batches are chosen before the first, or the last, of `wanted` is chosen once too often."""
        draws, wanted = self._draws(range(len(self._parts)), key), dict(wanted)
        done = 0
        while wanted:
            for which in draws.at(range(number + done, number + done + _CHUNK)):
                if which in wanted:
                    wanted[which] -= 1
                    if wanted[which] < 0:
                        del wanted[which]
                        if self._until == "shortest" or not wanted:
                            return done
                done += 1
        return done


class Together(Turns):
    """One batch of each loader at a time.

    Args:
        longest: Whether to go on until each has ended once, those that have ended beginning again; else the
            epoch ends with the first.
    """

    def __init__(self, parts: Sequence[Part], *, longest: bool) -> None:
        super().__init__(parts)
        self._longest = longest

    def draw(self, number: int) -> Drawn | None:
        places = [part.place for part in self._parts]
        drawn: dict[int, tuple[Any, Share]] = {}
        # First those that have not ended yet: once none has a batch, the others are left alone.
        order = sorted(range(len(places)), key=lambda which: places[which].passes > 0)
        first = [which for which in order if not places[which].passes]
        ended = []
        for which in first:
            batch = self._parts[which].next()
            if batch is not None:
                drawn[which] = batch
            elif not self._longest:
                return None
            else:
                ended.append(which)
        if not drawn:
            return None
        for which in order[len(first) :]:
            batch = self._parts[which].next()
            if batch is not None:
                drawn[which] = batch
            else:
                ended.append(which)
        for which in ended:
            self._parts[which].ended()
            places[which] = self._parts[which].place
            drawn[which] = self._parts[which].again()
        return Drawn(Standing(0, tuple(places)), {which: drawn[which] for which in range(len(places))})

    def left(self, number: int, standing: Standing, lefts: Sequence[int], key: tuple[int, int]) -> int:
        if not self._longest:
            return min(lefts)
        first = (left for left, place in zip(lefts, standing.places, strict=True) if not place.passes)
        return max(first, default=0)


MODES: dict[str, Callable[[Sequence[Part], str, Sequence[float] | None], Turns]] = {
    "round_robin": lambda parts, until, weights: OneAfterAnother(parts, until, None),
    "weighted": OneAfterAnother,
    "in_order": lambda parts, until, weights: OneAfterAnother(parts, until, None, stay=True),
    "min_size": lambda parts, until, weights: Together(parts, longest=False),
    "max_size": lambda parts, until, weights: Together(parts, longest=True),
}
TOGETHER = ("min_size", "max_size")
UNTIL = ("all", "shortest", "longest")


def beginning(parts: Sequence[Any]) -> Standing:
    return Standing(0, (Place(),) * len(parts))
