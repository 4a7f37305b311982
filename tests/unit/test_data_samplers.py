"""Samplers by weight: right frequencies, and an order that is a function of (seed, epoch, position)."""

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

from stratrun.data.samplers import ClassBalancedSampler, PositionSampler, WeightedSampler
from stratrun.errors import ConfigError, DataError
from tests.feeds import Numbers, in_global_order, make_feed, noted, on_ranks, rest_of_epoch

WEIGHTS = [0.0, 1.0, 2.0, 0.0, 5.0]
COUNT = 50


def weighted(**options: Any) -> dict[str, Any]:
    return {"type": "WeightedSampler", "weights": WEIGHTS, **options}


def spec(sampler: Any = None, size: int = 8, **options: Any) -> dict[str, Any]:
    sampler = weighted(num_samples=COUNT) if sampler is None else sampler
    return {"dataset": Numbers(5), "sampler": sampler, "global_batch_size": size, **options}


def epochs(feed: Any, count: int = 1) -> list[int]:
    return [number for _ in range(count) for batch in feed for number in batch.tolist()]


def test_samples_come_as_often_as_their_weights_say() -> None:
    found = Counter(epochs(make_feed(spec(weighted(num_samples=20_000), 1000))[0]))
    assert set(found) == {1, 2, 4}
    for index, weight in ((1, 1), (2, 2), (4, 5)):
        # 6 standard deviations of a binomial are less than 0.022 of the draws.
        assert found[index] / 20_000 == pytest.approx(weight / 8, abs=0.022)


def test_without_replacement_each_comes_once_and_heavy_ones_first() -> None:
    first: Counter[int] = Counter()
    feed, _ = make_feed(spec(weighted(replacement=False), 5))
    for _ in range(4000):
        drawn = epochs(feed)
        assert sorted(drawn) == [1, 2, 4]
        first[drawn[0]] += 1
    for index, weight in ((1, 1), (2, 2), (4, 5)):
        assert first[index] / 4000 == pytest.approx(weight / 8, abs=0.05)


def test_each_class_is_as_frequent_as_any_other() -> None:
    labels = [0] * 90 + [1] * 9 + [2]
    sampler = {"type": "ClassBalancedSampler", "labels": labels, "num_samples": 9000}
    feed, _ = make_feed({"dataset": Numbers(100), "sampler": sampler, "batch_size": 1000})
    found = Counter(labels[index] for index in epochs(feed))
    assert all(found[one] / 9000 == pytest.approx(1 / 3, abs=0.03) for one in (0, 1, 2))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int) -> list[int]:
        feed, _ = make_feed(spec(), seed=seed)
        feed.set_epoch(epoch)
        return epochs(feed)

    assert drawn(1, 3) == drawn(1, 3)
    assert drawn(1, 3) != drawn(1, 4)
    assert drawn(1, 3) != drawn(2, 3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("replacement", [True, False])
def test_an_epoch_over_two_ranks_then_one_then_four_is_that_of_one_rank(
    replacement: bool, workers: int
) -> None:
    weights = torch.arange(COUNT) + 1.0
    sampler = {"type": "WeightedSampler", "weights": weights, "replacement": replacement}
    given = {"dataset": Numbers(COUNT), "sampler": sampler, "global_batch_size": 8, "num_workers": workers}
    truth = epochs(make_feed(given, seed=7)[0])
    assert len(truth) == COUNT
    done: list[int] = []
    saved: Any = None
    for world_size, batches in ((2, 2), (1, 1), (4, None)):
        feeds = on_ranks(given, world_size, seed=7)
        taken = []
        for feed, info in feeds:
            if saved is not None:
                feed.load_state_dict(saved)
            mine = []
            for batch in itertools.islice(feed, batches):
                mine.append((batch.tolist(), noted(info)))
                feed.finish()
            taken.append(mine)
        done += in_global_order(taken)
        saved = feeds[0][0].state_dict()
        for feed, _ in feeds:
            feed.close()
    assert done == truth


def test_a_resumed_run_reads_no_sample_that_was_done_and_is_told_which_samples_are_where() -> None:
    first, info = make_feed(spec(), seed=7)
    taken = rest_of_epoch(first, info)
    assert [list(info.indices(noted.positions) or ()) for _, noted in taken] == [seen for seen, _ in taken]
    read: list[int] = []

    class Seen(Numbers):
        def __getitem__(self, index: int) -> torch.Tensor:
            read.append(index)
            return super().__getitem__(index)

    again, _ = make_feed({**spec(), "dataset": Seen(5)}, seed=7)
    again.load_state_dict({**first.state_dict(), "consumed": 16, "batches": 2})
    assert epochs(again) == read == [n for samples, _ in taken[2:] for n in samples]


def test_other_weights_within_an_epoch_are_refused_and_between_epochs_taken() -> None:
    first, _ = make_feed(spec())
    next(iter(first))
    first.finish()
    saved = first.state_dict()
    for sampler in (weighted(num_samples=COUNT, weights=[1, 1, 2, 0, 5]), None):
        other, _ = make_feed(
            {**spec(), "dataset": Numbers(COUNT if sampler is None else 5), "sampler": sampler}
        )
        with pytest.raises(
            DataError, match="was taken at sample 8 of an epoch with sampler='5 samples drawn by"
        ):
            other.load_state_dict(saved)
        other.load_state_dict({**saved, "consumed": 0, "batches": 0})


def test_a_loader_with_such_a_sampler_is_taken_apart() -> None:
    data = Numbers(5)
    truth = epochs(make_feed(spec(size=4), seed=3)[0], 2)
    sampler = WeightedSampler(data, WEIGHTS, COUNT)
    for loader in (
        DataLoader(data, batch_size=4, sampler=sampler),
        DataLoader(data, batch_sampler=BatchSampler(sampler, 4, False)),
    ):
        assert epochs(make_feed(loader, seed=3)[0], 2) == truth
    assert len(list(sampler)) == COUNT


class Backwards(PositionSampler):
    """One of the user's own."""

    def __init__(self, dataset: Any) -> None:
        self.samples = len(dataset)

    def order(self, seed: int, epoch: int) -> torch.Tensor:
        return torch.arange(self.samples).flip(0).roll(epoch)

    def __len__(self) -> int:
        return self.samples


def test_a_sampler_of_the_user_s_that_tells_the_order_is_shared_out_over_ranks() -> None:
    feeds = on_ranks(spec({"type": Backwards}, 4), 2)
    assert in_global_order([rest_of_epoch(*feed) for feed in feeds]) == [4, 3, 2, 1, 0]
    assert "in the order of Backwards" in feeds[0][0].describe()


MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    "few": (weighted(weights=[1.0]), DataError, r"weights of shape \(1,\) for 5 samples; give one for each"),
    "negative": (weighted(weights=[1, 2, -1, 1, 1]), DataError, "that of sample 2 is -1.0"),
    "nothing": (weighted(weights=[0] * 5), DataError, "of 0 or more, one of them more"),
    "text": (weighted(weights=["a"] * 5), ConfigError, "weights must be numbers, one for each sample"),
    "attribute": (
        weighted(weights="sample"),
        ConfigError,
        "Numbers has no attribute 'sample'; did you mean 'samples'",
    ),
    "replacement": (weighted(replacement="no"), ConfigError, "replacement='no' is a string; write true"),
    "count": (weighted(num_samples=0), ConfigError, "num_samples=0 must be a whole number, 1 or more"),
    "too many": (
        weighted(num_samples=4, replacement=False),
        ConfigError,
        "more than the 3 samples with a weight",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_mend(mistake: str) -> None:
    sampler, kind, text = MISTAKES[mistake]
    with pytest.raises(kind, match=text):
        make_feed(spec(sampler))


def test_evaluation_reads_each_sample_once_and_refuses_draws() -> None:
    with pytest.raises(ConfigError, match=r"WeightedSampler is for training, .* evaluation reads each once"):
        make_feed(spec(), train=False)
    with pytest.raises(
        ConfigError, match="ClassBalancedSampler says nothing of batches; give it as sampler="
    ):
        make_feed({"dataset": Numbers(2), "batch_sampler": ClassBalancedSampler(Numbers(2), [0, 1])})
