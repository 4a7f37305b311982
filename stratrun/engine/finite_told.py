"""What is told of an update that is not finite: where, which loss, which samples."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stratrun.distributed import Collectives
from stratrun.state import TrainState

Loss = tuple[Tensor, Sequence[int] | None, int]
"""A loss, the positions of its samples, and the iteration that it is of."""

_SHOWN = 8


def told(
    losses: Sequence[Loss],
    ranks: Collectives,
    indices: Callable[[Sequence[int]], Sequence[int] | None],
    state: TrainState,
) -> str:
    """The same text on every rank. An exchange between all of them."""
    mine = [_one(loss, indices) for loss in losses if not bool(torch.isfinite(loss[0]).all())]
    where = f"iteration {state.iter + 1} of epoch {state.epoch}"
    lines = []
    for rank, found in enumerate(ranks.gather(mine)):
        who = f" on rank {rank}" if ranks.world_size > 1 else ""
        for value, iteration, samples in found:
            of = f" in iteration {iteration}" if iteration != state.iter + 1 else ""
            lines.append(f"loss {value}{who}{of}{samples}")
    if not lines:
        return f"gradients that are not finite in {where}, though every loss is"
    return f"a loss that is not finite in {where}: {'; '.join(lines)}"


def _one(loss: Loss, indices: Callable[[Sequence[int]], Sequence[int] | None]) -> tuple[str, int, str]:
    value, positions, iteration = loss
    text = f"{value.double().mean().item()}"
    if positions is None or not len(positions):
        return text, iteration, ""
    found = indices(positions)
    ids = "" if found is None else f", {_list(found)} of the data set"
    return text, iteration, f" (samples at {_list(positions)} of the epoch{ids})"


def _list(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(int(number)) for number in numbers[:_SHOWN])
    return f"{shown} and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else shown
