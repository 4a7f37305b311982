"""Several loaders: which batch comes when, what is noted on it, and a position in all of them."""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tests.feeds import Noisy, Numbers, Stream, make_feed, on_ranks
from tests.unit.test_data_ending import Anew

A, B, C = 5, 9, 2
"""Samples of three loaders; `b` begins at 100, `c` at 200."""
MODES: dict[str, dict[str, Any]] = {
    "round_robin": {"mode": "round_robin"},
    "round_robin, shortest": {"mode": "round_robin", "until": "shortest"},
    "round_robin, longest": {"mode": "round_robin", "until": "longest"},
    "weighted": {"mode": "weighted", "weights": {"a": 1, "b": 3, "c": 2}},
    "weighted, shortest": {"mode": "weighted", "weights": {"a": 1, "b": 3, "c": 2}, "until": "shortest"},
    "weighted, longest": {"mode": "weighted", "weights": {"a": 1, "b": 3, "c": 2}, "until": "longest"},
    "in_order": {"mode": "in_order"},
    "min_size": {"mode": "min_size"},
    "max_size": {"mode": "max_size"},
}


class From(Numbers):
    """The numbers from `first` on."""

    def __init__(self, samples: int, first: int) -> None:
        super().__init__(samples)
        self.first = first

    def __getitem__(self, index: int) -> torch.Tensor:
        return super().__getitem__(index) + self.first


class Rows(Stream):
    """A stream of such numbers."""

    def __init__(self, samples: int, first: int) -> None:
        super().__init__(samples)
        self.first = first

    def __iter__(self) -> Iterator[Any]:
        return (torch.tensor(self.first + index) for index in range(self.samples))


def several(kind: str, *, sized: bool = True, shuffle: bool = False, **each: Any) -> dict[str, Any]:
    last = From(C, 200) if sized else Rows(C, 200)
    loaders: dict[str, Any] = {
        "a": {"dataset": From(A, 0), "global_batch_size": 2, "shuffle": shuffle, **each},
        "b": {"dataset": From(B, 100), "global_batch_size": 4, "shuffle": shuffle, **each},
        "c": {"dataset": last, "batch_size": 1, "shuffle": shuffle},
    }
    return {"type": "MultiLoader", "loaders": loaders, **MODES[kind]}


def plain(batch: Any) -> Any:
    return {name: one.tolist() for name, one in batch.items()} if isinstance(batch, dict) else batch.tolist()


def batches(feed: Any, epochs: int = 1) -> list[Any]:
    return [plain(batch) for _ in range(epochs) for batch in feed]


a, b, c = [[0, 1], [2, 3], [4]], [[100, 101, 102, 103], [104, 105, 106, 107], [108]], [[200], [201]]
EPOCHS: dict[str, list[Any]] = {
    "round_robin": [a[0], b[0], c[0], a[1], b[1], c[1], a[2], b[2]],
    "round_robin, shortest": [a[0], b[0], c[0], a[1], b[1], c[1], a[2], b[2]],
    "round_robin, longest": [a[0], b[0], c[0], a[1], b[1], c[1], a[2], b[2], c[0], a[0]],
    "in_order": [*a, *b, *c],
    "min_size": [{"a": a[i], "b": b[i], "c": c[i]} for i in range(2)],
    # Short last batches are left out.
    "max_size": [{"a": a[i], "b": b[i], "c": c[i]} for i in range(2)],
}


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("kind", EPOCHS)
def test_batches_come_in_the_order_of_the_mode_whether_lengths_are_known_or_not(
    kind: str, sized: bool
) -> None:
    feed, _ = make_feed(several(kind, sized=sized))
    assert feed.sized is sized
    assert batches(feed) == batches(feed) == EPOCHS[kind]


def test_the_longest_sets_the_length_and_others_begin_again_in_another_order() -> None:
    loaders = {
        "a": {"dataset": From(20, 0), "batch_size": 5},
        "b": {"dataset": From(60, 100), "batch_size": 5},
    }
    feed, _ = make_feed({"type": "MultiLoader", "mode": "max_size", "loaders": loaders}, seed=3)
    for _ in range(2):
        found = batches(feed)
        assert len(found) == 12
        assert sorted(n for batch in found for n in batch["b"]) == list(range(100, 160))
        passes = [[n for batch in found[i : i + 4] for n in batch["a"]] for i in (0, 4, 8)]
        assert [sorted(one) for one in passes] == [list(range(20))] * 3
        assert len({tuple(one) for one in passes}) == 3


def test_two_loaders_of_the_same_size_are_shuffled_apart() -> None:
    loaders = {"a": {"dataset": From(50, 0)}, "b": {"dataset": From(50, 0)}}
    feed, _ = make_feed({"type": "MultiLoader", "mode": "max_size", "loaders": loaders})
    (batch,) = batches(feed)
    assert batch["a"] != batch["b"]


def test_loaders_are_chosen_as_often_as_their_weights_say() -> None:
    loaders = {name: {"dataset": Numbers(3000), "batch_size": 1} for name in "abc"}
    weights = {"a": 1, "b": 3, "c": 2}
    spec = {"type": "MultiLoader", "mode": "weighted", "loaders": loaders, "weights": weights}
    feed, info = make_feed({**spec, "until": "shortest"})
    order, other = ([info.loader for _ in feed] for _ in range(2))
    assert order[:100] != other[:100], "each epoch is chosen for itself"
    found = Counter(order)
    assert found["b"] == 3000
    for name, weight in weights.items():
        assert found[name] / found.total() == pytest.approx(weight / 6, abs=0.02)


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_each_global_batch_is_of_one_loader_and_each_loader_gives_what_it_has(
    kind: str, world_size: int
) -> None:
    feeds = on_ranks(several(kind, shuffle=True), world_size, seed=5)
    seen: Counter[int] = Counter()
    for shares in zip(*(zip(feed, itertools.repeat(info)) for feed, info in feeds), strict=True):
        assert len({info.loader for _, info in shares}) == 1
        for batch, info in shares:
            assert len(list(info.positions)) == info.size
            (name,) = batch if isinstance(batch, dict) and len(batch) == 1 else (info.loader,)
            if name is not None:
                seen.update(batch.tolist()[: info.size])
    if kind.partition(", ")[0] in ("round_robin", "weighted", "in_order") and "," not in kind:
        # A stream gives each rank its own batch: as many samples all the same.
        assert seen == Counter([*range(A), *range(100, 100 + B), *range(200, 200 + C)])


@pytest.mark.parametrize("kind", MODES)
def test_positions_count_samples_and_lead_to_their_place_in_the_data_set(kind: str) -> None:
    feed, info = make_feed(several(kind, shuffle=True), seed=5)
    total = 0
    for batch in feed:
        assert list(info.positions or ()) == list(range(total, total + (info.total or 0)))
        total += info.total or 0
        indices = info.indices(info.positions or ())
        if isinstance(batch, dict):
            assert (indices, info.loader, info.size) == (None, None, sum(map(len, batch.values())))
        else:
            first = {"a": 0, "b": 100, "c": 200}[info.loader or ""]
            assert [first + index for index in indices or ()] == batch.tolist()
    assert feed.state_dict()["consumed"] == total


@pytest.mark.parametrize("kind", MODES)
def test_the_length_is_told_beforehand_and_at_every_position(kind: str) -> None:
    for epoch in range(4):
        feed, _ = make_feed(several(kind), seed=epoch)
        feed.set_epoch(epoch)
        length = len(feed)
        assert feed.epoch_length is not None
        found = 0
        for _ in feed:
            assert len(feed) == length
            feed.finish()
            again, _ = make_feed(several(kind), seed=epoch)
            again.load_state_dict(feed.state_dict())
            assert len(again) == length
            found += 1
        assert found == length


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("kind", MODES)
def test_going_on_from_any_batch_gives_the_rest_of_the_run(kind: str, sized: bool, finished: bool) -> None:
    truth = batches(make_feed(several(kind, sized=sized, shuffle=True), seed=2)[0], 3)
    for stop in range(1, len(truth) + 1):
        feed, _ = make_feed(several(kind, sized=sized, shuffle=True), seed=2)
        done = (batch for _ in range(3) for batch in feed)
        assert [plain(next(done)) for _ in range(stop)] == truth[:stop]
        if finished:
            feed.finish()
        again, _ = make_feed(several(kind, sized=sized, shuffle=True), seed=9)
        again.load_state_dict(feed.state_dict())
        rest = []
        while again.epoch < 3:
            rest += batches(again)
            again.epoch_done()
        assert rest == truth[stop - (not finished) :], stop


def test_going_on_reads_no_sample_that_was_done() -> None:
    read: list[int] = []

    class Seen(From):
        def __getitem__(self, index: int) -> torch.Tensor:
            read.append(self.first + index)
            return super().__getitem__(index)

    def made(kind: Any) -> Any:
        loaders = {
            name: {"dataset": kind(50, first), "batch_size": 5} for name, first in (("a", 0), ("b", 100))
        }
        return make_feed({"type": "MultiLoader", "loaders": loaders, "mode": "max_size"}, seed=4)[0]

    feed = made(From)
    truth = batches(feed)
    feed = made(From)
    for _ in itertools.islice(feed, 6):
        feed.finish()
    again = made(Seen)
    again.load_state_dict(feed.state_dict())
    assert batches(again) == truth[6:]
    assert sorted(read) == sorted(n for batch in truth[6:] for one in batch.values() for n in one)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["round_robin", "weighted", "in_order", "weighted, longest"])
def test_an_epoch_over_two_ranks_then_one_then_four_is_that_of_one_rank(kind: str, workers: int) -> None:
    def spec() -> Any:
        loaders = {
            "a": {"dataset": From(41, 0), "global_batch_size": 8, "num_workers": workers},
            "b": {"dataset": From(53, 100), "global_batch_size": 4, "num_workers": workers},
            "c": {"dataset": From(30, 200), "global_batch_size": 4},
        }
        return {"type": "MultiLoader", "loaders": loaders, **MODES[kind]}

    truth = [sorted(batch) for batch in batches(make_feed(spec(), seed=7)[0])]
    done: list[list[int]] = []
    saved: Any = None
    for world_size, count in ((2, 6), (1, 5), (4, None)):
        feeds = on_ranks(spec(), world_size, seed=7)
        per_rank = []
        for feed, info in feeds:
            if saved is not None:
                feed.load_state_dict(saved)
            mine = []
            for batch in itertools.islice(feed, count):
                mine.append(batch.tolist()[: info.size])
                feed.finish()
            per_rank.append(mine)
        states = [feed.state_dict() for feed, _ in feeds]
        assert all(state == states[0] for state in states)
        done += [sorted(n for share in shares for n in share) for shares in zip(*per_rank, strict=True)]
        saved = states[0]
        for feed, _ in feeds:
            feed.close()
    assert done == truth


def test_the_weights_of_short_batches_make_the_mean_over_samples() -> None:
    feeds = on_ranks(several("round_robin", shuffle=True), 2, seed=1)
    for shares in zip(*(zip(feed, itertools.repeat(info)) for feed, info in feeds), strict=True):
        (first, one), (second, other) = shares
        means = [one.scale * first[: one.size or 1].double().mean().item()]
        means.append(other.scale * second[: other.size or 1].double().mean().item())
        whole = [*first.tolist()[: one.size], *second.tolist()[: other.size]]
        assert sum(means) / 2 == pytest.approx(sum(whole) / len(whole))


def test_draws_of_samples_do_not_depend_on_workers() -> None:
    def drawn(workers: int) -> Any:
        loaders = {name: {"dataset": Noisy(7), "batch_size": 2, "num_workers": workers} for name in "ab"}
        feed, _ = make_feed({"type": "MultiLoader", "loaders": loaders}, seed=3)
        found = batches(feed, 2)
        feed.close()
        return found

    assert drawn(0) == drawn(2)


def test_batches_come_with_the_names_of_their_loaders_if_that_is_asked_for() -> None:
    feed, _ = make_feed({**several("round_robin"), "as_dict": True})
    assert batches(feed)[:3] == [{"a": [0, 1]}, {"b": b[0]}, {"c": [200]}]


def test_loaders_of_every_kind_take_turns_and_go_on() -> None:
    def spec() -> Any:
        loaders = {
            "dict": {"dataset": From(6, 0), "batch_size": 2},
            "loader": DataLoader(From(6, 100), batch_size=2, shuffle=True),
            "data set": From(6, 200),
            "list": [torch.tensor([300, 301]), torch.tensor([302, 303])],
            "function": lambda: iter([torch.tensor([400]), torch.tensor([401])]),
            "stateful": Anew(),
            "sampler": {"dataset": From(6, 500), "sampler": {"type": "RandomSampler"}, "batch_size": 2},
        }
        return {"type": "MultiLoader", "loaders": loaders, "mode": "round_robin"}

    truth = batches(make_feed(spec(), seed=2)[0], 2)
    for stop in (1, 6, 9, 12, 20, len(truth)):
        feed, _ = make_feed(spec(), seed=2)
        done = (batch for _ in range(2) for batch in feed)
        for _ in range(stop):
            next(done)
        feed.finish()
        again, _ = make_feed(spec(), seed=2)
        again.load_state_dict(feed.state_dict())
        rest = []
        while again.epoch < 2:
            rest += batches(again)
            again.epoch_done()
        assert rest == truth[stop:], stop


class ReadAhead:
    """Reads a batch before the one before it is handed out, as copies to a device do."""

    def over(self, batches: Iterator[Any], move: Any, *, ahead: bool) -> Iterator[Any]:
        assert ahead
        held = next(batches, None)
        while held is not None:
            coming = next(batches, None)
            yield held
            held = coming


def three_epochs(feed: Any) -> Iterator[Any]:
    for _ in range(3):
        yield from feed


@pytest.mark.parametrize("kind", MODES)
def test_what_was_read_ahead_does_not_count(kind: str) -> None:
    truth = batches(make_feed(several(kind, shuffle=True), seed=2)[0], 3)
    for stop in range(1, len(truth) + 1):
        feed, info = make_feed(several(kind, shuffle=True), seed=2, beside=ReadAhead())
        plainly, noted = make_feed(several(kind, shuffle=True), seed=2)
        done, same = (three_epochs(one) for one in (feed, plainly))
        for _ in range(stop):
            next(done), next(same)
            assert (info.loader, info.size, info.total) == (noted.loader, noted.size, noted.total)
        feed.finish()
        again, _ = make_feed(several(kind, shuffle=True))
        again.load_state_dict(feed.state_dict())
        rest = []
        while again.epoch < 3:
            rest += batches(again)
            again.epoch_done()
        assert rest == truth[stop:], stop
