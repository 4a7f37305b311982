"""One seed for every generator, before a model draws its first weights."""

import random
from typing import Any

import torch

_given: list[int] = []


def seed_everything(seed: int, workers: bool = True) -> int:
    """Seed Python and torch. Runs that are made afterwards take this seed where none is given.

    Args:
        workers: Not looked at: what loader workers draw follows from the seed of the run in any case.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    _given[:] = [seed]
    return seed


def randomness(given: Any) -> Any:
    """`randomness` of a runner, with the seed that was set for everything where it names none."""
    return {"seed": _given[0], **(given or {})} if _given else given
