"""What is told of an update that is not finite: where, which loss, which samples."""

from collections.abc import Callable, Sequence
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

    @classmethod
    def of(cls, value: Tensor, batch: BatchInfo, state: TrainState) -> "Loss":
        """That of the batch in hand."""
        return cls(value, Place.of(state), batch.positions, batch.indices)


_SHOWN = 8


def told(losses: Sequence[Loss], ranks: Collectives, place: Place) -> str:
    """The same text on every rank. An exchange between all of them.

    Args:
        place: Of the update, the same on all.
    """
    mine = [_one(loss) for loss in losses if not bool(torch.isfinite(loss.value).all())]
    where = f"iteration {place.iteration} of epoch {place.epoch}"
    lines = []
    for rank, found in enumerate(ranks.gather(mine)):
        who = f" on rank {rank}" if ranks.world_size > 1 else ""
        for value, iteration, samples in found:
            of = f" in iteration {iteration}" if iteration != place.iteration else ""
            lines.append(f"loss {value}{who}{of}{samples}")
    if not lines:
        return f"gradients that are not finite in {where}, though every loss is"
    return f"a loss that is not finite in {where}: {'; '.join(lines)}"


def _one(loss: Loss) -> tuple[str, int, str]:
    text, positions = f"{loss.value.double().mean().item()}", loss.positions
    if positions is None or not len(positions):
        return text, loss.place.iteration, ""
    found = loss.indices(positions)
    samples = f"at {_list(positions)} of the epoch" if found is None else f"{_list(found)} of the data set"
    return text, loss.place.iteration, f" (samples {samples})"


def _list(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(int(number)) for number in numbers[:_SHOWN])
    return f"{shown} and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else shown
