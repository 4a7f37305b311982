"""What each of the ranks has up to date comes to all of them."""

import pytest
import torch

from stratrun.strategies import owned
from stratrun.strategies.owned import Exchange
from tests.ranks import Ranks


def exchanged(at_once: int) -> bool:
    """Whether all ranks have what the owners had, in a few small exchanges or in one."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    kinds = [torch.float32, torch.bfloat16, torch.float64, torch.complex64]
    made, truth = [], []
    for number in range(24):
        shape = [(), (7,), (3, 5), (2, 3, 2, 2), (0,), (40, 3)][number % 6]
        values = torch.full(shape, 1.0, dtype=kinds[number % 4])
        if len(shape) == 4:
            values = values.to(memory_format=torch.channels_last)
        if number == 8:
            values = torch.ones(3, 10)[:, ::2]
        owner = number * 7 % ranks
        truth.append(values * (number + 1))
        made.append((values.mul_(number + 1) if owner == rank else values, owner))
    owned._AT_ONCE = at_once
    try:
        Exchange(made, rank, ranks)()
    finally:
        owned._AT_ONCE = 64 * 2**20
    return all(torch.equal(one, other) for (one, _), other in zip(made, truth, strict=True))


@pytest.mark.parametrize("at_once", [1, 200, 800, 2**20])
def test_all_ranks_come_by_what_owners_have_whatever_its_dtype_and_layout(
    at_once: int, two_ranks: Ranks, four_ranks: Ranks
) -> None:
    for ranks in (two_ranks, four_ranks):
        assert all(ranks(exchanged, at_once))
