"""The end of an epoch over data that each rank reads for itself, as one of the ranks sees it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from stratrun.data import Feed
from tests.feeds import Numbers, Stream, make_feed

MINE, OTHERS, EPOCHS = 5, 3, 3


class OtherRank:
    """Exchanges with a rank that has so many batches in each epoch. Notes when they begin and end."""

    rank, world_size = 1, 2

    def __init__(self, batches: int = OTHERS) -> None:
        self.batches = batches
        self.events: list[str] = []
        self.under_way = self.asked = 0

    def begin_sum(self, tensor: Tensor) -> Callable[[], None]:
        self.events.append("begin")
        self.asked += 1
        has = int(self.asked <= self.batches)
        kept = tensor.clone()

        def end() -> None:
            self.events.append("end")
            tensor.copy_(kept + has)
            if int(tensor) < self.world_size:
                self.asked = 0

        return end

    def gather(self, value: Any) -> list[Any]:
        return [not value, value]


class Anew:
    """A loader with a state that begins each pass anew, but for the first after a state was loaded."""

    def __init__(self) -> None:
        self.next, self.loaded = 0, False

    def __iter__(self) -> Iterator[Tensor]:
        if not self.loaded:
            self.next = 0
        self.loaded = False
        while self.next < MINE:
            self.next += 1
            yield torch.tensor([self.next - 1])

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next, self.loaded = state["next"], True


class GoesOn(Anew):
    """One without an end, that goes on where it was left."""

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            self.next += 1
            yield torch.tensor([self.next - 1])


class OwnStream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(Stream(MINE))


class Unsized:
    """A sampler without length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(MINE))


KINDS: dict[str, Callable[[], Any]] = {
    "begins anew": Anew,
    "goes on": GoesOn,
    "a function": lambda: lambda: (torch.tensor([number]) for number in range(MINE)),
    "a sharded stream": lambda: {"dataset": OwnStream(), "batch_size": 1, "sharded": True},
    "a sampler": lambda: {"dataset": Numbers(9), "batch_size": 1, "sampler": Unsized()},
}


def fed(kind: str, other: OtherRank) -> Feed:
    return make_feed(KINDS[kind](), 1, 2, ranks=other)[0]


def seen(feed: Feed, other: OtherRank, stop: tuple[int, int] | None = None) -> list[int]:
    """Samples up to the end of the last epoch, or up to so many batches of an epoch."""
    found: list[int] = []
    while feed.epoch < EPOCHS:
        # Of an epoch that is gone on with, the other rank has only the rest.
        other.batches = OTHERS - feed.batches_done
        if (feed.epoch, feed.batches_done) == stop:
            return found
        for batch in feed:
            found += batch.tolist()
            feed.finish()
            if (feed.epoch, feed.batches_done) == stop:
                return found
        feed.set_epoch(feed.epoch + 1)
    return found


@pytest.mark.filterwarnings("ignore:.*an epoch ended:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_after_any_batch_sees_what_an_unbroken_one_sees(kind: str) -> None:
    other = OtherRank()
    whole = seen(fed(kind, other), other)
    assert len(whole) == OTHERS * EPOCHS
    if kind != "goes on":
        assert whole == list(range(OTHERS)) * EPOCHS
    # After all batches of an epoch, and before the first of the next, are two different places.
    for stop in ((epoch, done) for epoch in range(EPOCHS) for done in range(OTHERS + 1)):
        feed, other = fed(kind, first := OtherRank()), OtherRank()
        before = seen(feed, first, stop)
        again = fed(kind, other)
        again.load_state_dict(feed.state_dict())
        assert before + seen(again, other) == whole, stop


def test_what_is_read_ahead_is_asked_about_during_the_work_on_the_batch_before() -> None:
    def events(kind: str) -> list[str]:
        other = OtherRank(MINE)
        for _ in fed(kind, other):
            other.events.append("work")
        return other.events

    asked = ["begin", "end"]
    assert events("a function") == [*asked, *["work", *asked] * MINE]
    assert events("a sharded stream") == ["begin", *["end", "begin", "work"] * MINE, "end"]


def test_data_whose_end_all_ranks_know_costs_no_exchange() -> None:
    for spec in ({"dataset": Numbers(8), "batch_size": 2}, Stream(8), [torch.zeros(2)] * 4):
        other = OtherRank()
        feed, _ = make_feed(spec, 0, 2, ranks=other)
        assert len(list(feed)) and not other.events
    evaluation, _ = make_feed(KINDS["a function"](), 0, 2, train=False, ranks=OtherRank())
    assert len(list(evaluation)) == MINE


def test_who_has_more_is_told_once() -> None:
    other = OtherRank()
    other.rank = 0
    feed = fed("a function", other)
    with pytest.warns(UserWarning, match=r"dataloader: an epoch ended after 3 batches.* rank 1 has more"):
        list(feed)
    list(feed)
