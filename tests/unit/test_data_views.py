"""Data sets made of others: which samples they have, and that a position in them is one number."""

import itertools
import random
from collections import Counter
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from stratrun.data.seeding import draws_nothing
from stratrun.registry import DATASETS
from tests.feeds import Noisy, Numbers, in_global_order, make_feed, on_ranks, rest_of_epoch

CLASSES = [0] * 60 + [1] * 30 + [2] * 9 + [3]


class Labelled(Numbers):
    """The numbers below 100, each of a class, and what was read of them."""

    def __init__(self) -> None:
        super().__init__(100)
        self.targets = CLASSES
        self.read: list[int] = []
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __getitem__(self, index: int) -> Tensor:
        self.read.append(index)
        return super().__getitem__(index)


def built(**spec: Any) -> Any:
    return DATASETS.build(spec)


def numbers(dataset: Any) -> list[int]:
    return [int(dataset[position]) for position in range(len(dataset))]


SPECS: dict[str, dict[str, Any]] = {
    "concatenated": {"type": "ConcatDataset", "datasets": [{"type": Numbers, "samples": 7}, Labelled()]},
    "repeated": {"type": "RepeatDataset", "dataset": {"type": Labelled}, "times": 2},
    "subset": {"type": "Subset", "dataset": {"type": Labelled}, "fraction": 0.57},
    "balanced": {"type": "ClassBalancedDataset", "dataset": {"type": Labelled}, "threshold": 0.3},
    "nested": {
        "type": "RepeatDataset",
        "times": 3,
        "dataset": {
            "type": "ConcatDataset",
            "datasets": [{"type": "Subset", "dataset": Labelled(), "indices": [5, 3]}, Numbers(9)],
        },
    },
}


def test_samples_are_those_of_the_parts_in_their_order() -> None:
    assert numbers(built(**SPECS["concatenated"])) == [*range(7), *range(100)]
    assert numbers(built(**SPECS["repeated"])) == [*range(100), *range(100)]
    assert numbers(built(**SPECS["nested"])) == [5, 3, *range(9)] * 3
    assert numbers(built(type="Subset", dataset=Numbers(9), indices=torch.tensor([8, 0, -2]))) == [8, 0, 7]
    even = built(type="Subset", dataset=Numbers(9), predicate=lambda sample: bool(sample % 2 == 0))
    assert numbers(even) == [0, 2, 4, 6, 8]


def test_parts_of_a_data_set_share_no_sample_and_are_a_function_of_the_seed() -> None:
    def part(begin: float, end: float, seed: int = 0) -> list[int]:
        return numbers(built(type="Subset", dataset=Numbers(101), fraction=(begin, end), seed=seed))

    assert sorted(part(0, 0.8) + part(0.8, 1)) == list(range(101))
    assert len(part(0, 0.8)) == 81
    assert part(0, 0.8) == numbers(built(type="Subset", dataset=Numbers(101), fraction=0.8))
    assert part(0, 0.8) != part(0, 0.8, seed=1)


def test_choosing_by_samples_draws_nothing_from_the_run() -> None:
    before = random.getstate(), torch.get_rng_state()
    first = built(type="Subset", dataset=Noisy(20), predicate=lambda sample: bool(sample[1] < 0.5), seed=3)
    again = built(type="Subset", dataset=Noisy(20), predicate=lambda sample: bool(sample[1] < 0.5), seed=3)
    assert list(first.indices) == list(again.indices)
    assert 0 < len(first) < 20
    assert before[0] == random.getstate()
    assert torch.equal(before[1], torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", SPECS)
def test_an_epoch_over_two_ranks_then_one_then_four_is_that_of_one_rank(kind: str, workers: int) -> None:
    def spec() -> dict[str, Any]:
        return {"dataset": DATASETS.build(SPECS[kind]), "global_batch_size": 8, "num_workers": workers}

    whole, info = make_feed(spec(), seed=7)
    whole.set_epoch(1)
    truth = [number for samples, _ in rest_of_epoch(whole, info) for number in samples]
    assert len(truth) == len(whole.dataset)
    done: list[int] = []
    saved: Any = None
    for world_size, batches in ((2, 2), (1, 1), (4, None)):
        feeds = on_ranks(spec(), world_size, seed=7)
        for feed, _ in feeds:
            if saved is None:
                feed.set_epoch(1)
            else:
                feed.load_state_dict(saved)
        taken: list[list[Any]] = []
        for feed, info in feeds:
            mine = []
            for batch in itertools.islice(feed, batches):
                mine.append((batch.tolist(), type(info)(info.size, info.scale)))
                feed.finish()
            taken.append(mine)
        done += in_global_order(taken)
        saved = feeds[0][0].state_dict()
        for feed, _ in feeds:
            feed.close()
    assert done == truth


@pytest.mark.parametrize("kind", SPECS)
def test_evaluation_reads_each_index_once(kind: str) -> None:
    dataset = DATASETS.build(SPECS[kind])
    feeds = on_ranks({"dataset": dataset, "batch_size": 3}, 2, train=False)
    read = [(info.positions, samples) for feed in feeds for samples, info in rest_of_epoch(*feed)]
    found = {p: n for positions, samples in read for p, n in zip(positions or (), samples, strict=True)}
    assert sum(len(samples) for _, samples in read) == len(dataset)
    assert [found[position] for position in range(len(dataset))] == numbers(dataset)


def test_a_resumed_run_reads_no_sample_that_was_done() -> None:
    data = Labelled()
    feed, _ = make_feed({"dataset": built(type="RepeatDataset", dataset=data, times=2), "batch_size": 10})
    feed.load_state_dict({**feed.state_dict(), "consumed": 150, "batches": 15})
    list(feed)
    assert len(data.read) == 50


def test_the_parts_are_told_the_epoch() -> None:
    data = Labelled()
    spec = {"type": "ConcatDataset", "datasets": [{"type": "RepeatDataset", "dataset": data, "times": 1}]}
    feed, _ = make_feed({"dataset": spec, "batch_size": 50})
    list(feed), list(feed)
    assert data.epochs == [0, 1]


def test_repeated_samples_are_drawn_anew_each_time() -> None:
    feed, _ = make_feed(
        {"dataset": {"type": "RepeatDataset", "dataset": Noisy(3), "times": 2}, "batch_size": 6}
    )
    (batch,) = feed
    assert sorted(batch[:, 0].tolist()) == [0, 0, 1, 1, 2, 2]
    assert len(set(batch[:, 1].tolist())) == 6


def test_each_class_comes_as_often_as_the_repeat_factor_of_lvis_says() -> None:
    threshold, epochs = 0.3, 400
    counts = Counter(CLASSES)
    factor = {one: max(1.0, sqrt(threshold / (count / 100))) for one, count in counts.items()}
    dataset = built(type="ClassBalancedDataset", dataset=Labelled(), threshold=threshold)
    seen: Counter[int] = Counter()
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        found = Counter(dataset.index_of(position) for position in range(len(dataset)))
        for index, times in found.items():
            assert int(factor[CLASSES[index]]) <= times <= int(factor[CLASSES[index]]) + 1
        assert len(found) == 100
        seen += found
    total = sum(factor[one] * count for one, count in counts.items())
    assert len(dataset) == round(total)
    for index in range(100):
        assert seen[index] / epochs == pytest.approx(factor[CLASSES[index]], rel=0.08)


def test_a_sample_of_several_classes_goes_by_the_rarest() -> None:
    labels = [["car"]] * 8 + [["car", "train"]] * 2
    dataset = built(type="ClassBalancedDataset", dataset=Numbers(10), threshold=0.8, labels=labels)
    assert Counter(numbers(dataset)) == {**dict.fromkeys(range(8), 1), 8: 2, 9: 2}  # sqrt(0.8 / 0.2) = 2


class ByMethod(Numbers):
    """Tells the class of a sample when asked for it."""

    def class_of(self, index: int) -> int:
        return int(index == 0)


@pytest.mark.parametrize(
    ("dataset", "labels"),
    [
        (Numbers(4), [1, 0, 0, 0]),
        (Numbers(4), torch.tensor([1, 0, 0, 0])),
        (Numbers(4), lambda data: [int(n == 0) for n in range(len(data))]),
        (ByMethod(4), "class_of"),
        (TensorDataset(torch.arange(4), torch.tensor([1, 0, 0, 0])), None),
        ({"type": "Subset", "dataset": ByMethod(9), "indices": [0, 3, 4, 8]}, "class_of"),
    ],
    ids=["list", "tensor", "function", "method", "targets of a TensorDataset", "of a subset"],
)
def test_classes_are_told_without_reading_samples(dataset: Any, labels: Any) -> None:
    balanced = built(type="ClassBalancedDataset", dataset=dataset, threshold=1, labels=labels)
    assert [balanced.index_of(position) for position in range(5)] == [0, 0, 1, 2, 3]


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Any:
        raise OSError(f"no file {index}")


class Whole(Numbers):
    """Reads batches at once, and notes how large they were."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.asked: list[int] = []

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        self.asked.append(len(indices))
        return [self[index] for index in indices]


@pytest.mark.parametrize(
    "options",
    [
        {"type": "RepeatDataset", "times": 1},
        {"type": "Subset", "indices": range(40)},
        {"type": "ClassBalancedDataset", "threshold": 1, "labels": [0] * 40},
    ],
    ids=["repeated", "subset", "balanced"],
)
def test_a_data_set_that_reads_whole_batches_is_asked_for_them(options: dict[str, Any]) -> None:
    data = Whole(40)
    feed, _ = make_feed({"dataset": {"dataset": data, **options}, "batch_size": 10})
    list(feed)
    # The first is read one by one, to see whether samples draw random numbers.
    assert data.asked == [10, 10, 10]


def test_a_sample_that_fails_is_named_by_its_own_data_set() -> None:
    spec = {
        "type": "ConcatDataset",
        "datasets": [Numbers(2), {"type": "RepeatDataset", "dataset": Broken(), "times": 2}],
    }
    feed, _ = make_feed({"dataset": spec, "batch_size": 1, "shuffle": False})
    with pytest.raises(OSError, match="no file 0") as caught:
        list(feed)
    assert "while reading sample 2 of ConcatDataset, which is sample 0 of Broken" in caught.value.__notes__
    spec = {"type": "RepeatDataset", "dataset": Broken(), "times": 2}
    feed, _ = make_feed({"dataset": spec, "batch_size": 1, "shuffle": False})
    with pytest.raises(OSError, match="no file 0") as caught:
        list(feed)
    assert "while reading sample 0 of RepeatDataset, which is sample 0 of Broken" in caught.value.__notes__


def test_what_is_made_of_tensors_alone_is_known_to_draw_nothing() -> None:
    tensors = TensorDataset(torch.arange(4))
    repeated = built(type="RepeatDataset", dataset=tensors, times=2)
    both = built(
        type="ConcatDataset", datasets=[repeated, {"type": "Subset", "dataset": tensors, "indices": [1]}]
    )
    assert draws_nothing(both)
    assert not draws_nothing(built(type="RepeatDataset", dataset=Noisy(3), times=2))
