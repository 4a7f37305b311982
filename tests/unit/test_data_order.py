"""The order of an epoch, and its division, against plain arithmetic."""

import pytest
import torch

from stratrun.data.order import Plan, epoch_order, indices_at
from tests.feeds import Numbers, in_global_order, on_ranks, rest_of_epoch


def test_an_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    order = list(indices_at(epoch_order(3, 5, 101, True), range(101)))
    assert sorted(order) == list(range(101))
    torch.manual_seed(99)
    assert indices_at(epoch_order(3, 5, 101, True), range(101)) == order
    assert indices_at(epoch_order(3, 6, 101, True), range(101)) != order
    assert indices_at(epoch_order(4, 5, 101, True), range(101)) != order
    assert indices_at(epoch_order(3, 5, 101, False), range(2, 9, 3)) == [2, 5, 8]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("per_rank", [1, 3, 8])
def test_left_counts_what_shares_yields_from_every_position(
    drop_last: bool, pad: bool, world_size: int, per_rank: int
) -> None:
    for rank in range(world_size):
        plan = Plan(23, per_rank, rank, world_size, drop_last, pad)
        for start in range(24):
            assert plan.left(start) == len(list(plan.shares(start))), (rank, start)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_global_batch_is_the_same_for_any_number_of_ranks(world_size: int, workers: int) -> None:
    spec = {"dataset": Numbers(50), "global_batch_size": 8, "num_workers": workers}
    expected = indices_at(epoch_order(7, 0, 50, True), range(50))
    feeds = on_ranks(spec, world_size, seed=7)
    per_rank = [rest_of_epoch(*feed) for feed in feeds]
    for number, batches in enumerate(zip(*per_rank, strict=True)):
        union = [sample for samples, info in batches for sample in samples[: info.size]]
        assert sorted(union) == sorted(expected[number * 8 : number * 8 + 8])
    assert in_global_order(per_rank) == expected


def test_epochs_differ_and_come_back() -> None:
    ((feed, info),) = on_ranks({"dataset": Numbers(20), "batch_size": 4}, 1)
    first, second = rest_of_epoch(feed, info), rest_of_epoch(feed, info)
    assert feed.epoch == 1
    assert sorted([sample for samples, _ in second for sample in samples]) == list(range(20))
    assert [samples for samples, _ in first] != [samples for samples, _ in second]
    feed.set_epoch(0)
    assert [samples for samples, _ in rest_of_epoch(feed, info)] == [samples for samples, _ in first]


def test_without_shuffle_training_follows_the_data_set() -> None:
    feeds = on_ranks({"dataset": Numbers(10), "batch_size": 2, "shuffle": False}, 2)
    assert in_global_order([rest_of_epoch(*feed) for feed in feeds]) == list(range(10))
