"""What is told of an update that is not finite: where, which loss, which samples."""

from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from stratrun.distributed import Collectives
from stratrun.state import BatchInfo, TrainState


class Place(NamedTuple):
    """Where in a run something was done."""

    iteration: int
    epoch: int

    @classmethod
    def of(cls, state: TrainState) -> "Place":
        """That of the iteration in hand."""
        return cls(state.iter + 1, state.epoch)


class Loss(NamedTuple):
    """A loss, and what it is of."""

    value: Tensor
    place: Place
    positions: Sequence[int] | None
    indices: Callable[[Sequence[int]], Sequence[int] | None]
    limit: float = inf
    """What it may be at most."""
    loader: str | None = None

    @classmethod
    def of(cls, value: Tensor, batch: BatchInfo, state: TrainState, limit: float = inf) -> "Loss":
        """That of the batch in hand."""
        # A batch that only keeps ranks in step counts nothing.
        limit = inf if batch.size == 0 else limit
        return cls(value, Place.of(state), batch.positions, batch.indices, limit, batch.loader)

    @property
    def is_bad(self) -> bool:
        """Whether it is not finite, or above its limit. It waits for the device."""
        return not bool((torch.isfinite(self.value) & (self.value <= self.limit)).all())


_SHOWN = 8


def told(losses: Sequence[Loss], ranks: Collectives, place: Place) -> str:
    """The same text on every rank. An exchange between all of them.

    Args:
        place: Of the update, the same on all.
    """
    mine = [_one(loss) for loss in losses if loss.is_bad]
    where = f"iteration {place.iteration} of epoch {place.epoch}"
    lines, above = [], True
    for rank, found in enumerate(ranks.gather(mine)):
        who = f" on rank {rank}" if ranks.world_size > 1 else ""
        for value, limit, iteration, samples in found:
            of = f" in iteration {iteration}" if iteration != place.iteration else ""
            spike = isfinite(value)
            above = above and spike
            lines.append(f"loss {value}{who}{of}{samples}{f' above {limit:.6g}' if spike else ''}")
    if not lines:
        return f"gradients that are not finite in {where}, though every loss is"
    what = "a loss above its limit" if above else "a loss that is not finite"
    return f"{what} in {where}: {'; '.join(lines)}"


def _one(loss: Loss) -> tuple[float, float, int, str]:
    value, positions = loss.value.double().mean().item(), loss.positions
    if positions is None or not len(positions):
        return value, loss.limit, loss.place.iteration, ""
    found = loss.indices(positions)
    if found is None:
        samples = f"at {listed(positions)} of the epoch"
    else:
        of = "" if loss.loader is None else f" of loader {loss.loader!r}"
        samples = f"{listed(found)} of the data set{of}"
    return value, loss.limit, loss.place.iteration, f" (samples {samples})"


def listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(int(number)) for number in numbers[:_SHOWN])
    return f"{shown} and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else shown
