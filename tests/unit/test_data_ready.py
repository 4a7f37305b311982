"""Samplers, loaders and batches of the user's own: left alone, and yet resumed."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from stratrun.errors import DataError
from tests.feeds import Numbers, make_feed, on_ranks, rest_of_epoch


class Backwards(Sampler[int]):
    """The last first, from a place that the epoch decides."""

    epoch = 0

    def __init__(self, data_source: Numbers) -> None:
        self.samples = len(data_source)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return ((index - self.epoch) % self.samples for index in reversed(range(self.samples)))

    def __len__(self) -> int:
        return self.samples


DATA = Numbers(10)
OWN: dict[str, Any] = {
    "sampler in a dict": {"dataset": DATA, "batch_size": 4, "sampler": Backwards(DATA)},
    "sampler by class": {"dataset": DATA, "batch_size": 4, "sampler": {"type": Backwards}},
    "batch sampler": {"dataset": DATA, "batch_sampler": BatchSampler(Backwards(DATA), 4, False)},
    "loader": DataLoader(DATA, batch_size=4, sampler=Backwards(DATA)),
    "loader with batch sampler": DataLoader(DATA, batch_sampler=BatchSampler(Backwards(DATA), 4, False)),
}


def batches_of(feed: Any) -> list[Any]:
    return [batch.tolist() for batch in feed]


@pytest.mark.parametrize("kind", OWN)
def test_the_user_s_own_sampler_decides_and_is_told_the_epoch(kind: str) -> None:
    feed, info = make_feed(OWN[kind])
    assert len(feed) == 3
    assert batches_of(feed) == [[9, 8, 7, 6], [5, 4, 3, 2], [1, 0]]
    assert batches_of(feed) == [[8, 7, 6, 5], [4, 3, 2, 1], [0, 9]]
    assert (info.size, info.total, info.scale) == (2, 2, 1.0)
    assert "your Backwards, which is left alone" in feed.describe()


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_a_sampler_reads_no_sample_that_was_done(kind: str, workers: int) -> None:
    first, _ = make_feed(OWN[kind])
    next(iter(first))
    first.finish()
    data = Numbers(10, forbidden=[9, 8, 7, 6])
    spec = OWN[kind]
    if isinstance(spec, dict):
        spec = {**spec, "dataset": data, "num_workers": workers}
    else:
        spec = DataLoader(data, batch_sampler=spec.batch_sampler, num_workers=workers)
    again, _ = make_feed(spec)
    again.load_state_dict(first.state_dict())
    assert batches_of(again) == [[5, 4, 3, 2], [1, 0]]


def test_a_sampler_without_batches_gives_single_samples() -> None:
    feed, _ = make_feed(DataLoader(DATA, batch_size=None, sampler=Backwards(DATA)))
    assert batches_of(feed) == list(reversed(range(10)))
    assert len(feed) == 10


def test_a_distributed_sampler_is_given_the_ranks() -> None:
    spec = {"dataset": DATA, "batch_size": 5, "sampler": {"type": "DistributedSampler", "shuffle": False}}
    feeds = on_ranks(spec, 2)
    assert [batches_of(feed) for feed, _ in feeds] == [[[0, 2, 4, 6, 8]], [[1, 3, 5, 7, 9]]]
    assert type(feeds[0][0]._source._sampler.sampler) is DistributedSampler  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "sampler",
    [
        RandomSampler(DATA, replacement=True),
        RandomSampler(DATA, num_samples=4),
        SequentialSampler(Numbers(6)),
        WeightedRandomSampler([1.0, 2.0], 6),
    ],
    ids=["replacement", "some", "other data", "weighted"],
)
def test_a_sampler_with_a_purpose_is_not_taken_for_a_default(sampler: Any) -> None:
    feed, _ = make_feed(DataLoader(DATA, batch_size=2, sampler=sampler))
    assert f"your {type(sampler).__name__}" in feed.describe()
    assert sum(len(batch) for batch in feed) == len(sampler)


def test_a_sampler_s_place_is_not_told_on_another_number_of_ranks() -> None:
    first, _ = make_feed(OWN["loader"])
    next(iter(first))
    first.finish()
    for feed, _ in on_ranks(OWN["loader"], 2, name="train_dataloader"):
        with pytest.raises(DataError, match=r"train_dataloader: .* on 1 ranks, .* on 2 cannot be told"):
            feed.load_state_dict(first.state_dict())


def generated() -> Iterator[Tensor]:
    return (torch.tensor([index, index]) for index in range(4))


class Loader:
    """A loader of another library."""

    def __iter__(self) -> Iterator[Tensor]:
        return generated()


@pytest.mark.parametrize(
    "batches", [list(generated()), generated, Loader()], ids=["list", "function", "object"]
)
def test_ready_batches_are_used_as_they_are_and_resumed(batches: Any) -> None:
    feed, info = make_feed(batches)
    taken = [(samples, noted.size, noted.total) for samples, noted in rest_of_epoch(feed, info)]
    assert taken == [([index, index], 2, 2) for index in range(4)]
    assert feed.sized is isinstance(batches, list)
    assert len(batches_of(feed)) == 4
    again, _ = make_feed(batches)
    for idx, _ in enumerate(again):
        again.finish()
        if idx == 1:
            break
    third, _ = make_feed(batches)
    third.load_state_dict(again.state_dict())
    assert batches_of(third) == [[2, 2], [3, 3]]


def test_a_list_is_entered_in_the_middle() -> None:
    class Guarded(list[Tensor]):
        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("lists of batches are iterated")

    feed, _ = make_feed(Guarded(generated()))
    assert len(batches_of(feed)) == 4


def test_a_generator_serves_one_epoch_and_the_second_says_why_not() -> None:
    feed, _ = make_feed(generated(), name="train_dataloader")
    assert len(batches_of(feed)) == 4
    with pytest.raises(DataError, match="train_dataloader: a generator can be read only once"):
        list(feed)


def test_ready_batches_on_several_ranks_know_nothing_of_each_other() -> None:
    feed, info = on_ranks(list(generated()), 2)[1]
    assert len(batches_of(feed)) == 4
    assert (info.size, info.scale, info.positions, info.total) == (2, 1.0, None, None)
    assert "each of 2 ranks reads its own" in feed.describe()


class Stateful:
    """A loader that keeps its own position, and counts what it reads."""

    def __init__(self) -> None:
        self.position = 0
        self.read: list[int] = []

    def __iter__(self) -> Iterator[Tensor]:
        while self.position % 5 or not self.read or self.read[-1] != self.position - 1:
            self.read.append(self.position)
            self.position += 1
            yield torch.tensor([self.position - 1])
        self.read.append(-1)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]
        self.read.clear()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_loader_with_a_state_goes_on_where_the_work_was(epochs: int, stop: int, finished: bool) -> None:
    loader = Stateful()
    feed, _ = make_feed(loader)
    for _ in range(epochs):
        batches_of(feed)
        feed.epoch_done()
    for idx, _ in enumerate(feed, start=1):
        if idx == stop:
            if finished:
                feed.finish()
            state = feed.state_dict()
            break
    first = 5 * epochs + stop - (not finished)
    again = Stateful()
    resumed, _ = make_feed(again)
    resumed.load_state_dict(state)
    assert resumed.epoch == epochs
    assert batches_of(resumed) == [[n] for n in range(first, 5 * epochs + 5)]
    if finished:
        assert again.read[0] == first


def test_a_loader_with_a_state_saved_between_epochs_begins_the_next() -> None:
    feed, _ = make_feed(Stateful())
    batches_of(feed)
    feed.epoch_done()
    resumed, _ = make_feed(Stateful())
    resumed.load_state_dict(feed.state_dict())
    assert batches_of(resumed)[0] == [5]
    assert batches_of(feed)[0] == [5]
    assert "its own state is saved" in feed.describe()


def test_a_feed_is_not_built_twice() -> None:
    feed, _ = make_feed(DATA)
    assert make_feed(feed)[0] is feed
