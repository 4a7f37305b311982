"""What users get wrong about data: the message names the value, the reason and the mend."""

import gc
import os
import re
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from stratrun.errors import ConfigError, DataError, StratrunError, UnknownNameError
from tests.feeds import Noisy, Numbers, Stream, make_feed, on_ranks

DATA = Numbers(10)


class Unsized:
    """Has an index and no length."""

    def __getitem__(self, index: int) -> int:
        return index


class Shapeless:
    """Neither index nor length."""


MISTAKES: dict[str, tuple[Any, type[StratrunError], str]] = {
    "model": (nn.Linear(1, 1), ConfigError, "Linear is a model; give a dict with 'dataset'"),
    "string": ("mnist", ConfigError, "'mnist' is a string; give a dict"),
    "class": (Numbers, ConfigError, "Numbers is a class, not an object of it"),
    "tensor": (torch.ones(3), ConfigError, "a tensor says nothing about batches (TensorDataset"),
    "tuple": ((torch.ones(3), torch.ones(3)), ConfigError, "write TensorDataset(*tensors), or [batch]"),
    "number": (3, ConfigError, "val_dataloader=3 is not something to read batches from; give"),
    "no data set": ({"batch_size": 4}, ConfigError, "has no 'dataset' (it has 'batch_size'); add one"),
    "empty dict": ({}, ConfigError, "has no 'dataset' (it has nothing)"),
    "misspelt": ({"datset": DATA}, ConfigError, "no argument 'datset'; did you mean 'dataset'?"),
    "argument": ({"dataset": DATA, "num_worker": 2}, ConfigError, "did you mean 'num_workers'?"),
    "unknown data set": ({"dataset": {"type": "TensorDatset"}}, UnknownNameError, "'TensorDataset'?"),
    "loader within": ({"dataset": DataLoader(DATA)}, ConfigError, "give it as val_dataloader itself"),
    "empty data set": ({"dataset": Numbers(0)}, DataError, "Numbers is empty: len() is 0; check the path"),
    "unsized": ({"dataset": Unsized()}, DataError, "Unsized has no length; define __len__()"),
    "no data": ({"dataset": Shapeless()}, DataError, "Shapeless is no data set: it has no __getitem__"),
    "batch size": ({"dataset": DATA, "batch_size": 0}, ConfigError, "batch_size=0 must be a whole number, 1"),
    "batch size text": ({"dataset": DATA, "batch_size": "8"}, ConfigError, "batch_size='8' must be a whole"),
    "workers": (
        {"dataset": DATA, "num_workers": -1},
        ConfigError,
        "num_workers=-1 must be a whole number, 0",
    ),
    "two sizes": (
        {"dataset": DATA, "batch_size": 2, "global_batch_size": 4},
        ConfigError,
        "batch_size (of one rank) and global_batch_size (of all) say the same thing; give one",
    ),
    "generator": (
        {"dataset": DATA, "generator": torch.Generator()},
        ConfigError,
        "generator= has no place here: the order is a function of the run's seed and the epoch",
    ),
    "order": ({"dataset": DATA, "in_order": False}, ConfigError, "in_order= has no place here: batches come"),
    "collate": ({"dataset": DATA, "collate_fn": 3}, ConfigError, "collate_fn=3 cannot be called; give"),
    "sampler": ({"dataset": DATA, "sampler": 3}, ConfigError, "sampler=3 cannot be iterated"),
    "sampler, shuffle": (
        {"dataset": DATA, "sampler": [1, 2], "shuffle": True},
        ConfigError,
        "sampler= decides what shuffle=True decides too; leave one of them out",
    ),
    "batch sampler": (
        {"dataset": DATA, "batch_sampler": [[1, 2]], "batch_size": 2},
        ConfigError,
        "batch_sampler= decides what batch_size=2 decides too",
    ),
    "sampler of a stream": (
        {"dataset": Stream(3), "sampler": [1]},
        ConfigError,
        "Stream is an IterableDataset, which decides on its order itself; leave sampler out",
    ),
    "refused by DataLoader": (
        {"dataset": DATA, "num_workers": 1, "prefetch_factor": -1},
        ConfigError,
        "DataLoader refuses its arguments: prefetch_factor option should be non-negative",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_mend_before_anything_is_read(mistake: str) -> None:
    spec, kind, text = MISTAKES[mistake]
    with pytest.raises(kind, match=re.escape(text)) as caught:
        make_feed(spec, name="val_dataloader", train=False)
    assert "val_dataloader" in str(caught.value)


def test_a_global_batch_that_ranks_cannot_share_is_refused_with_one_that_they_can() -> None:
    for size, near in ((10, 8), (11, 12), (9, 8), (1, 4)):
        with pytest.raises(
            ConfigError, match=rf"global_batch_size={size} cannot .* by 4 ranks; .* is {near}"
        ):
            on_ranks({"dataset": DATA, "global_batch_size": size}, 4)


def test_drop_last_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"drop_last=True leaves no batch: 10 samples .* 8 x 2 ranks = 16; lower"
    ):
        on_ranks({"dataset": DATA, "batch_size": 8, "drop_last": True}, 2)


class Placed(dict[str, Any]):
    places: ClassVar = {"num_worker": "train.yaml:7"}


def test_messages_say_where_in_the_config_the_value_stands() -> None:
    with pytest.raises(ConfigError, match=r"'num_workers'\? \(train.yaml:7\)"):
        make_feed(Placed(dataset=DATA, num_worker=2))


def test_the_summary_says_what_is_read_and_how() -> None:
    def describe(spec: Any, world_size: int = 2, **options: Any) -> str:
        return on_ranks(spec, world_size, name="data", **options)[0][0].describe()

    assert describe({"dataset": DATA, "batch_size": 2}, seed=5) == (
        "data: 10 samples, shuffled by (seed 5, epoch), 3 batches of 2 x 2 ranks = 4, the last of 2"
    )
    assert describe({"dataset": DATA, "batch_size": 2}, 1, train=False) == (
        "data: 10 samples, each once, in the order of the data set, 5 batches of 2"
    )
    assert "1 batches of 32" in describe(DATA, 1)
    assert "sharded=True" in describe(Stream(3))
    assert "read the same samples unless it shares them out" in describe(DataLoader(DATA, sampler=[1, 2]))


def test_a_resumed_run_says_where_it_goes_on() -> None:
    first, _ = make_feed({"dataset": DATA, "batch_size": 4}, name="data")
    next(iter(first))
    first.finish()
    again, _ = make_feed({"dataset": DATA, "batch_size": 4}, name="data")
    again.load_state_dict(first.state_dict())
    assert again.describe().endswith("goes on in epoch 0 after 4 samples")


@pytest.mark.parametrize("key", ["prefetch_factor", "persistent_workers", "timeout"])
def test_what_concerns_workers_is_ignored_where_there_are_none(key: str) -> None:
    feed, _ = make_feed({"dataset": DATA, "batch_size": 5, "num_workers": 0, key: 1})
    assert len(list(feed)) == 2


ONE = {"dataset": DATA, "batch_size": 2, "num_workers": 2}


@pytest.mark.parametrize(
    "spec",
    [ONE, {"type": "MultiLoader", "mode": "min_size", "loaders": {"a": ONE, "b": [DATA[0]]}}],
    ids=["one loader", "several"],
)
def test_workers_of_a_forgotten_feed_end_at_once(spec: Any) -> None:
    feed, info = make_feed(spec)
    list(feed)
    feed.cycle = feed  # type: ignore[attr-defined]
    start = time.monotonic()
    del feed, info
    gc.collect()
    assert time.monotonic() - start < 4


class Readers(Numbers):
    """A sample tells which process read it."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(os.getpid())


def test_workers_stay_from_epoch_to_epoch_unless_told_otherwise() -> None:
    spec = {"dataset": Readers(4), "batch_size": 4, "num_workers": 1}
    for persistent, processes in [(None, 1), (True, 1), (False, 2)]:
        asked = {} if persistent is None else {"persistent_workers": persistent}
        feed, _ = make_feed({**spec, **asked})
        assert len({batch[0].item() for _ in range(2) for batch in feed}) == processes


def test_a_closed_feed_starts_its_workers_again() -> None:
    feed, _ = make_feed({"dataset": DATA, "batch_size": 5, "num_workers": 1})
    list(feed)
    feed.close()
    assert len(list(feed)) == 2


def test_pinned_memory_is_asked_for_only_where_it_is_of_use() -> None:
    for told, wanted, expected in [(False, True, False), (True, False, False), (True, None, True)]:
        spec = {"dataset": TensorDataset(torch.ones(4)), **({} if wanted is None else {"pin_memory": wanted})}
        feed, _ = make_feed(spec, pin_memory=told)
        (loader,) = feed._source._reader._held  # type: ignore[attr-defined]
        assert loader.pin_memory is expected


def test_a_batch_costs_a_few_microseconds_beyond_reading_it() -> None:
    batches = [torch.ones(1)] * 2000
    feed, _ = make_feed(batches)

    def seconds() -> float:
        start = time.thread_time()
        for _ in enumerate(feed):
            pass
        return time.thread_time() - start

    assert min(seconds() for _ in range(5)) / len(batches) < 20e-6


class Endless(IterableDataset[Any]):
    """Has no end."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from Noisy(5)  # type: ignore[misc]


def test_an_endless_stream_is_read_as_far_as_asked_for() -> None:
    feed, _ = make_feed({"dataset": Endless(), "batch_size": 2})
    assert sum(1 for _ in zip(feed, range(50), strict=False)) == 50
