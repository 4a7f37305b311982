"""The most samples of which a forward and a backward pass fit into memory at once."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stratrun.engine.before import Before
from stratrun.engine.memory import give_back, is_out_of_memory
from stratrun.engine.pieces import resized
from stratrun.optim.expected import expected_state

if TYPE_CHECKING:
    from stratrun.engine.engine import Engine


def most_that_fit(
    engine: "Engine", parameters: Sequence[nn.Parameter], batch: Any, size: int, limit: int
) -> int:
    """How many up to a limit, on this rank; nothing of the search is left behind.

    Args:
        batch: Of `size` samples, which are repeated for more.
    """
    before = Before(engine, parameters, exact=True)
    try:
        return largest(lambda wanted: _fits(engine, resized(batch, size, wanted), parameters), limit)
    finally:
        before.put_back()
        give_back(engine._device)


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest size up to a limit that fits: by doubling, then between the last two. 0 if none does."""
    good, bad, size = 0, limit + 1, 1
    while good + 1 < bad:
        if fits(size):
            good = size
        else:
            bad = size
        size = min(2 * good, limit) if bad > limit else (good + bad) // 2
    return good


def _fits(engine: "Engine", batch: Any, parameters: Sequence[nn.Parameter]) -> bool:
    held: list[Any] = []
    try:
        # What optimizers keep comes with their first update only.
        held.append(torch.empty(_to_come(engine), dtype=torch.uint8, device=engine._device))
        with engine._precision.forward_context():
            loss = engine._placed.bare(batch, "train", True)["loss"]
        loss.backward()
        return True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    finally:
        held.clear()
        for parameter in parameters:
            parameter.grad = None
    give_back(engine._device)
    return False


def _to_come(engine: "Engine") -> int:
    shards = engine._strategy.optimizer_shards
    held = None if shards is None else shards.holds
    new = [one for one in engine.optimizers.values() if not one.state]
    return sum(expected_state(one, lambda p: p.nbytes, held) for one in new)
