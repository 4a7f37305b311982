"""What data sets draw depends on the sample alone, and costs the run's own generators nothing."""

import random
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Sampler, Subset, TensorDataset

from stratrun.data.seeding import draws_nothing, sample_seed
from tests.feeds import Noisy, NoisyInBatches, Numbers, Stream, make_feed, on_ranks


class Drawing(Sampler[int]):
    """A permutation out of the global generators, some of it drawn late."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[int]:
        for index in torch.randperm(self.samples).tolist():
            yield (index + random.randrange(self.samples) + int(numpy.random.randint(9))) % self.samples

    def __len__(self) -> int:
        return self.samples


def drawn_batches() -> Iterator[Tensor]:
    for _ in range(5):
        yield torch.rand(4) + random.random() + float(numpy.random.random())


SPECS: dict[str, Any] = {
    "data set": {"dataset": Noisy(30), "batch_size": 4},
    "batched data set": {"dataset": NoisyInBatches(30), "batch_size": 4},
    "subset": {"dataset": Subset(Noisy(60), range(0, 60, 2)), "batch_size": 4},
    "stream": {"dataset": Stream(30, noisy=True), "batch_size": 4},
    "sampler": {"dataset": Noisy(30), "batch_size": 4, "sampler": Drawing(30)},
    "loader": DataLoader(Noisy(30), batch_size=4, sampler=Drawing(30)),
    "function": drawn_batches,
}


def samples_of(spec: Any, world_size: int = 1, **options: Any) -> dict[int, list[float]]:
    """What was drawn for each sample in an epoch, by its index."""
    found = {}
    for feed, info in on_ranks(spec, world_size, **options):
        for batch in feed:
            for row in batch[: info.size].tolist():
                found[int(row[0])] = row[1:]
    return found


@pytest.mark.parametrize("kind", ["data set", "batched data set", "subset", "stream"])
def test_draws_are_the_same_for_any_workers_and_ranks(kind: str) -> None:
    spec = SPECS[kind]
    expected = samples_of(spec, seed=1)
    assert len({tuple(draws) for draws in expected.values()}) == 30
    # More workers than one would each read the whole of this stream.
    workers = 1 if kind == "stream" else 2
    assert samples_of({**spec, "num_workers": workers}, seed=1) == expected
    assert samples_of(spec, world_size=2, seed=1) == expected
    assert samples_of({**spec, "batch_size": 3}, world_size=4, seed=1) == expected
    assert samples_of(spec, seed=2) != expected


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("stop", [1, 3])
def test_draws_after_a_resume_are_those_of_the_uninterrupted_epoch(kind: str, stop: int) -> None:
    whole, _ = make_feed(SPECS[kind])
    batches = [batch.tolist() for batch in whole]
    first, _ = make_feed(SPECS[kind])
    iterator = iter(first)
    for _ in range(stop):
        next(iterator)
        first.finish()
    torch.manual_seed(5)
    again, _ = make_feed(SPECS[kind])
    again.load_state_dict(first.state_dict())
    assert [batch.tolist() for batch in again] == batches[stop:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", SPECS)
def test_loading_leaves_the_run_s_own_generators_alone(kind: str, workers: int) -> None:
    spec = SPECS[kind]
    if isinstance(spec, dict):
        spec = {**spec, "num_workers": workers}
    feed, _ = make_feed(spec)
    random.seed(1), numpy.random.seed(2), torch.manual_seed(3)
    # Leaves a number in store: the state of NumPy's generator is more than its words.
    numpy.random.randn()
    expected = [(random.random(), numpy.random.randn(), torch.rand(()).item()) for _ in range(4)]
    random.seed(1), numpy.random.seed(2), torch.manual_seed(3)
    numpy.random.randn()
    drawn: list[tuple[float, float, float]] = []
    for _ in feed:
        if len(drawn) < 4:
            drawn.append((random.random(), numpy.random.randn(), torch.rand(()).item()))
    assert drawn == expected


def test_epochs_draw_differently() -> None:
    feed, _ = make_feed({"dataset": Noisy(4), "batch_size": 4, "shuffle": False})
    first = next(iter(feed))
    feed.set_epoch(1)
    second = next(iter(feed))
    assert first[:, 0].tolist() == second[:, 0].tolist()
    assert first[:, 1].tolist() != second[:, 1].tolist()


def test_unseeded_samples_draw_from_the_run_s_own_stream() -> None:
    feed, _ = make_feed({"dataset": Noisy(2), "batch_size": 2, "seed_samples": False})
    torch.manual_seed(0)
    expected = torch.rand(2).tolist()
    torch.manual_seed(0)
    (batch,) = list(feed)
    assert batch[:, 3].float().tolist() == expected


def test_unseeded_workers_draw_by_seed_and_epoch() -> None:
    spec = {"dataset": Noisy(8), "batch_size": 4, "seed_samples": False, "num_workers": 2}
    torch.manual_seed(1)
    first = [batch[:, 1:].tolist() for batch in make_feed(spec)[0]]
    torch.manual_seed(2)
    feed, _ = make_feed({**spec, "persistent_workers": False})
    assert [batch[:, 1:].tolist() for batch in feed] == first
    second = [batch[:, 1:].tolist() for batch in feed]
    assert second != first
    other, _ = make_feed(spec)
    other.set_epoch(1)
    assert [batch[:, 1:].tolist() for batch in other] == second


class Noted(Numbers):
    """Notes what is read. From sample `loud` on, it draws."""

    def __init__(self, samples: int, loud: int) -> None:
        super().__init__(samples)
        self.loud = loud
        self.read: list[int] = []
        self.batches: list[list[int]] = []

    def __getitem__(self, index: int) -> Tensor:
        self.read.append(index)
        return torch.tensor([index, random.random() if index >= self.loud else 0.0])


class NotedBatches(Noted):
    """Reads batches at once."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        self.batches.append(indices)
        return [self[index] for index in indices]


@pytest.mark.parametrize("loud", [0, 2, 99])
@pytest.mark.parametrize("kind", [Noted, NotedBatches])
def test_each_sample_is_read_once(kind: type[Noted], loud: int) -> None:
    dataset = kind(12, loud)
    feed, _ = make_feed({"dataset": dataset, "batch_size": 4, "shuffle": False})
    list(feed)
    assert dataset.read == list(range(12))
    # Drawing for a batch as a whole would make samples depend on how they are batched.
    assert dataset.batches == ([[4, 5, 6, 7], [8, 9, 10, 11]] if kind is NotedBatches and loud == 99 else [])


@pytest.mark.parametrize("kind", [Noted, NotedBatches])
def test_a_data_set_that_draws_late_gives_what_it_would_have_given_alone(kind: type[Noted]) -> None:
    def draws(batch_size: int) -> list[list[float]]:
        feed, _ = make_feed({"dataset": kind(12, 6), "batch_size": batch_size, "shuffle": False})
        return [row for batch in feed for row in batch.tolist()]

    assert draws(12) == draws(4) == draws(1)


def mixed(samples: list[Tensor]) -> Tensor:
    return torch.stack(samples) + random.random() + float(numpy.random.random()) + torch.rand(())


def mixed_rows(samples: list[tuple[Tensor]]) -> Tensor:
    return mixed([row for (row,) in samples])


@pytest.mark.parametrize("kind", ["quiet", "noisy", "rows"])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_collating_draws_is_tied_to_the_batch(kind: str, workers: int) -> None:
    dataset: Any = {"quiet": Numbers(12), "noisy": Noisy(12), "rows": TensorDataset(torch.arange(12.0))}[kind]
    spec = {
        "dataset": dataset,
        "batch_size": 3,
        "shuffle": False,
        "collate_fn": mixed_rows if kind == "rows" else mixed,
    }
    whole = [batch.tolist() for batch in make_feed(spec)[0]]
    added = {round(batch[0] if isinstance(batch[0], float) else batch[0][0], 6) % 3 for batch in whole}
    assert len(added) == 4
    torch.manual_seed(8)
    feed, _ = make_feed({**spec, "num_workers": workers})
    assert [batch.tolist() for batch in feed] == whole
    assert torch.rand(()).item() == torch.rand((), generator=torch.Generator().manual_seed(8)).item()


class Epochs(Numbers):
    """A sample tells the epoch that the data set was told."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(self.epoch)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_is_told_the_epoch_where_it_is_read(workers: int) -> None:
    feed, _ = make_feed({"dataset": Epochs(4), "batch_size": 4, "num_workers": workers})
    assert [batch.tolist() for _ in range(3) for batch in feed] == [[0] * 4, [1] * 4, [2] * 4]


def test_seeds_of_neighbours_are_far_apart_and_fit() -> None:
    seeds = [sample_seed(12345, position) for position in range(10_000)]
    assert len(set(seeds)) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 0.45 < sum(seed >> 62 for seed in seeds) / 10_000 < 0.55


def test_only_tensors_are_trusted_to_draw_nothing() -> None:
    rows = TensorDataset(torch.ones(2))
    assert draws_nothing(Subset(rows, [0]))
    assert draws_nothing(rows + rows)
    assert not draws_nothing(ConcatDataset([rows, Numbers(2)]))
    assert not draws_nothing(Numbers(2))


def test_an_error_in_a_data_set_names_the_sample() -> None:
    feed, _ = make_feed({"dataset": Numbers(5, forbidden=[3]), "batch_size": 5})
    with pytest.raises(AssertionError) as caught:
        list(feed)
    assert caught.value.__notes__ == ["while reading sample 3 of Numbers"]
