"""Fewer batches of an epoch than there are, for every kind of data."""

import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from stratrun.data import Feed, Limit, has_no_length, limited_to
from stratrun.errors import ConfigError, DataError
from tests.feeds import Noisy, Numbers, Stream, in_global_order, make_feed, on_ranks, rest_of_epoch


class Shuffled(IterableDataset[Any]):
    """A stream whose order is drawn when it begins."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.randperm(20))


class Noted(Numbers):
    """Notes what is read of it, in whichever process."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.read = torch.zeros(samples, dtype=torch.bool).share_memory_()

    def __getitem__(self, index: int) -> Tensor:
        self.read[index] = True
        return super().__getitem__(index)


class Paged:
    """A loader that keeps its position."""

    def __init__(self) -> None:
        self.page = 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.page < 12:
            self.page += 1
            yield torch.arange(self.page, self.page + 4)
        self.page = 0

    def state_dict(self) -> dict[str, int]:
        return {"page": self.page}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.page = state["page"]


def numbers(batch_size: int = 4, samples: int = 20, **options: Any) -> dict[str, Any]:
    return {"dataset": Numbers(samples), "batch_size": batch_size, **options}


KINDS: dict[str, Callable[[], Any]] = {
    "data set": numbers,
    "own sampler": lambda: numbers(sampler=RandomSampler(Numbers(20))),
    "list": lambda: [torch.arange(i, i + 4) for i in range(0, 20, 4)],
    "loader": lambda: DataLoader(Shuffled(), batch_size=4),
    "function": lambda: lambda: iter(torch.randperm(20).split(4)),
    "stream": lambda: {"dataset": Shuffled(), "batch_size": 4},
    "position": Paged,
    "by turns": lambda: {"type": "MultiLoader", "loaders": {"a": numbers(), "b": numbers(2)}},
    "by weight": lambda: {
        "type": "MultiLoader",
        "mode": "weighted",
        "weights": {"a": 1, "b": 2},
        "loaders": {"a": numbers(), "b": numbers(2)},
    },
}


def epochs(feed: Feed, count: int) -> list[list[Any]]:
    return [[batch.tolist() for batch in feed] for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_ends_after_the_first_batches_of_a_whole_one(kind: str) -> None:
    whole, _ = make_feed(KINDS[kind]())
    feed, _ = make_feed(KINDS[kind](), limit=Limit(3))
    assert len(feed) == feed.epoch_length == 3
    found = epochs(feed, 3)
    assert [len(one) for one in found] == [3, 3, 3]
    if kind == "position":  # which goes on where it was left
        assert found[0] == epochs(whole, 1)[0][:3]
    else:
        assert found == [one[:3] for one in epochs(whole, 3)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("same", [False, True])
def test_a_position_in_a_limited_epoch_is_gone_on_from(kind: str, same: bool) -> None:
    truth = epochs(make_feed(KINDS[kind](), limit=Limit(3, same=same))[0], 2)
    for done in range(1, 6):
        feed, _ = make_feed(KINDS[kind](), limit=Limit(3, same=same))
        for epoch in range(2):
            feed.set_epoch(epoch)
            for _ in islice(feed, done - 3 * epoch):
                feed.finish()
            if 3 * (epoch + 1) > done:
                break
            feed.epoch_done()
        resumed, _ = make_feed(KINDS[kind](), limit=Limit(3, same=same))
        resumed.load_state_dict(feed.state_dict())
        assert len(resumed) == 3
        rest = [batch.tolist() for batch in resumed]
        assert rest == truth[done // 3][done % 3 :], done


@pytest.mark.parametrize("kind", KINDS)
def test_overfitting_gives_the_same_batches_in_each_epoch(kind: str) -> None:
    feed, _ = make_feed(KINDS[kind](), limit=Limit(4, same=True))
    first, second, third = epochs(feed, 3)
    assert first == second == third and len(first) == 4
    if kind == "data set":
        assert first == [list(range(i, i + 4)) for i in range(0, 16, 4)]


def test_transforms_draw_other_numbers_in_each_epoch_of_overfitting() -> None:
    feed, _ = make_feed({"dataset": Noisy(20), "batch_size": 4}, limit=Limit(2, same=True))
    first, second = epochs(feed, 2)
    assert [[row[0] for row in batch] for batch in first] == [[row[0] for row in batch] for batch in second]
    assert first[0][0][1:] != second[0][0][1:]


@pytest.mark.parametrize("order", ["shuffle", "sampler"])
def test_no_sample_behind_the_limit_is_read_by_workers(order: str) -> None:
    noted = Noted(40)
    given = {"shuffle": False, "sampler": SequentialSampler(noted)}
    data = {"dataset": noted, "batch_size": 4, "num_workers": 2, order: given[order]}
    feed, _ = make_feed(data, limit=Limit(2))
    assert epochs(feed, 2) == [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 2
    feed.close()
    assert noted.read.nonzero().flatten().tolist() == list(range(8))


@pytest.mark.parametrize(
    ("share", "samples", "batches"), [(1.0, 20, 5), (0.5, 20, 2), (0.01, 20, 1), (0.29, 400, 29)]
)
def test_a_share_is_of_the_batches_that_there_are(share: float, samples: int, batches: int) -> None:
    feed, _ = make_feed(numbers(samples=samples), limit=Limit(share))
    assert len(feed) == len(epochs(feed, 1)[0]) == batches


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_share_the_first_samples_of_the_order_of_an_epoch(world_size: int) -> None:
    spec = {"dataset": Numbers(50), "global_batch_size": 8}
    alone, info = make_feed(spec)
    truth = in_global_order([rest_of_epoch(alone, info)])[:24]
    ranks = on_ranks(spec, world_size, limit=Limit(3))
    assert in_global_order([rest_of_epoch(feed, info) for feed, info in ranks]) == truth


@pytest.mark.parametrize("share", [0.34, 0.67, 1.0])
def test_ranks_evaluate_the_same_share_where_one_has_a_batch_less(share: float) -> None:
    # Three batches on rank 0, two on rank 1.
    ranks = on_ranks(numbers(samples=17), 2, train=False, limit=Limit(share))
    lengths = [len(list(feed)) for feed, _ in ranks]
    assert lengths == ([3, 2] if share == 1.0 else [int(3 * share)] * 2)


def test_a_limited_epoch_goes_on_with_the_same_samples_on_another_number_of_ranks() -> None:
    spec = {"dataset": Numbers(50), "global_batch_size": 8}
    alone, info = make_feed(spec, limit=Limit(4))
    truth = in_global_order([rest_of_epoch(alone, info)])
    (first, _), (other, _) = on_ranks(spec, 2, limit=Limit(4))
    for feed in (first, other):
        next(iter(feed))
        feed.finish()
    ranks = on_ranks(spec, 4, limit=Limit(4))
    for feed, _ in ranks:
        feed.load_state_dict(first.state_dict())
    assert in_global_order([rest_of_epoch(feed, info) for feed, info in ranks]) == truth[8:]


def test_a_limited_epoch_is_not_gone_on_with_in_batches_of_another_size() -> None:
    (feed, _), _ = on_ranks(numbers(samples=50), 2, limit=Limit(4))
    next(iter(feed))
    feed.finish()
    other, _ = make_feed(numbers(samples=50), limit=Limit(4))
    with pytest.raises(DataError, match=r"limited .* 8 samples .* 4 now.*global_batch_size"):
        other.load_state_dict(feed.state_dict())


def test_another_limit_is_told_of_where_an_epoch_is_gone_on_with() -> None:
    feed, _ = make_feed(numbers(), limit=Limit(4))
    next(iter(feed))
    feed.finish()
    for limit, words in ((Limit(2), "has 2 batches"), (None, "has all its batches")):
        other, _ = make_feed(numbers(), limit=limit)
        other.load_state_dict(feed.state_dict())
        assert "was to have 4 batches" in other.describe() and words in other.describe()
        assert len(epochs(other, 1)[0]) == (1 if limit else 4)
    with pytest.raises(DataError, match="overfit_batches=False, and now overfit_batches=True"):
        make_feed(numbers(), limit=Limit(4, same=True))[0].load_state_dict(feed.state_dict())


def test_data_that_ends_before_its_limit_is_told_of_once() -> None:
    feed, _ = make_feed({"dataset": Stream(8), "batch_size": 4}, limit=Limit(3))
    assert len(feed) == 3
    with pytest.warns(UserWarning, match="ended after 2 batches, before the 3 .* lower the limit"):
        assert len(epochs(feed, 1)[0]) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(epochs(feed, 1)[0]) == 2
        assert len(epochs(make_feed(numbers(samples=8), limit=Limit(3))[0], 1)[0]) == 2


def test_evaluation_of_a_stream_is_limited_without_a_length() -> None:
    feed, _ = make_feed({"dataset": Stream(20), "batch_size": 4}, train=False, limit=Limit(2))
    assert not feed.sized and len(list(feed)) == len(list(feed)) == 2


def test_a_share_of_what_has_no_length_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"0.5 of an epoch .* no length.*100"):
        make_feed({"dataset": Stream(20), "batch_size": 4}, limit=Limit(0.5))


def test_what_has_no_length_is_known_before_it_is_built() -> None:
    unsized = ("loader", "function", "stream", "position")
    assert {kind for kind, make in KINDS.items() if has_no_length(make())} == set(unsized)


def test_a_pass_is_limited_for_a_block_and_whole_after_it() -> None:
    feed, _ = make_feed(numbers(), train=False)
    with limited_to(2, feed):
        assert len(feed) == len(list(feed)) == 2
    assert len(feed) == len(list(feed)) == 5
