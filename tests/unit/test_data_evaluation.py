"""Evaluation: each sample once, whatever the ranks and batches."""

import pytest
from torch.utils.data import DataLoader

from tests.feeds import Noisy, Numbers, Stream, make_feed, on_ranks, rest_of_epoch


@pytest.mark.parametrize("samples", [1, 5, 7, 101])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("per_rank", [1, 3, 8])
@pytest.mark.parametrize("kind", ["data set", "loader", "stream"])
def test_every_sample_is_visited_once_with_its_position(
    samples: int, world_size: int, per_rank: int, kind: str
) -> None:
    spec = {
        "data set": {"dataset": Numbers(samples), "batch_size": per_rank, "shuffle": True, "drop_last": True},
        "loader": DataLoader(Numbers(samples), batch_size=per_rank, shuffle=True),
        "stream": {"dataset": Stream(samples), "batch_size": per_rank},
    }[kind]
    visited = []
    for feed, info in on_ranks(spec, world_size, train=False):
        batches = rest_of_epoch(feed, info)
        for batch, noted in batches:
            assert noted.size == len(batch) <= per_rank
            assert list(noted.positions or ()) == batch
            assert noted.scale == 1.0
            visited += batch
        if kind != "stream":
            assert len(batches) == len(feed)
    assert sorted(visited) == list(range(samples))


def test_totals_add_up_to_the_data_set_on_the_rank_that_is_never_short() -> None:
    feed, info = on_ranks({"dataset": Numbers(101), "batch_size": 8}, 4, train=False)[0]
    assert sum(noted.total or 0 for _, noted in rest_of_epoch(feed, info)) == 101


def test_a_rank_may_have_nothing_to_do() -> None:
    feeds = on_ranks({"dataset": Numbers(2), "batch_size": 1}, 4, train=False)
    assert [len(feed) for feed, _ in feeds] == [1, 1, 0, 0]
    assert list(feeds[3][0]) == []


def test_every_pass_begins_at_the_first_batch() -> None:
    feed, _ = make_feed({"dataset": Numbers(10), "batch_size": 4}, train=False)
    iterator = iter(feed)
    next(iterator), next(iterator)
    assert [len(batch) for batch in feed] == [4, 4, 2]
    assert [len(batch) for batch in feed] == [4, 4, 2]
    assert len(feed) == 3


def test_what_a_data_set_draws_in_evaluation_is_the_same_every_time_and_not_that_of_training() -> None:
    spec = {"dataset": Noisy(6), "batch_size": 6, "shuffle": False}
    feed, _ = make_feed(spec, train=False)
    (first,) = list(feed)
    feed.set_epoch(5)
    (second,) = list(feed)
    assert first.tolist() == second.tolist()
    (training,) = list(make_feed(spec)[0])
    assert training[:, 0].tolist() == first[:, 0].tolist()
    assert training[:, 1].tolist() != first[:, 1].tolist()
