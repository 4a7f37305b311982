"""Copies on a stream of their own: the order in which streams are told what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from stratrun.accelerators import CPUAccelerator
from stratrun.accelerators.side_copies import SideCopies, tensors_in
from tests.feeds import Numbers, Stream, make_feed

CPU = torch.device("cpu")


class FakeStream:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls
        self.events = 0

    def record_event(self) -> str:
        self.events += 1
        self.calls.append(f"{self.name} records {self.events}")
        return f"{self.name} {self.events}"

    def wait_event(self, event: str) -> None:
        self.calls.append(f"{self.name} waits for {event}")


class FakeStreams:
    """What there is of `torch.cuda`, with every call noted."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.work = FakeStream("work", self.calls)
        self.now = self.work

    def Stream(self, device: Any) -> FakeStream:
        self.calls.append("new stream")
        return FakeStream("side", self.calls)

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.now = self.now, stream
        yield
        self.now = before

    def current_stream(self, device: Any) -> FakeStream:
        return self.now


class Kept(Tensor):
    """A tensor that notes by which stream it is held."""

    calls: list[str]

    def record_stream(self, stream: FakeStream) -> None:  # type: ignore[override]
        self.calls.append(f"{int(self)} is held by {stream.name}")


def run(batches: list[Any], *, ahead: bool) -> tuple[list[str], list[Any]]:
    streams = FakeStreams()

    def move(batch: Tensor) -> Tensor:
        streams.calls.append(f"copy {int(batch)} on {streams.now.name}")
        moved = batch.clone().as_subclass(Kept)
        moved.calls = streams.calls
        return moved

    def read() -> Iterator[tuple[Any, int]]:
        for number, batch in enumerate(batches):
            streams.calls.append(f"read {number}")
            yield batch, number

    notes = []
    for _, note in SideCopies(streams, CPU).over(read(), move, ahead=ahead):
        streams.calls.append(f"step {note}")
        notes.append(note)
    return streams.calls, notes


def copied(number: int) -> list[str]:
    return [f"copy {number} on side", f"side records {number + 1}"]


def taken(number: int) -> list[str]:
    return [f"work waits for side {number + 1}", f"{number} is held by work", f"step {number}"]


def test_a_batch_is_copied_before_the_step_on_the_one_before_and_waited_for_by_the_device_alone() -> None:
    calls, notes = run([torch.tensor(number) for number in range(3)], ahead=True)
    first, *rest = copied(0)
    assert calls == [
        *["read 0", "new stream", first, *rest],
        *["read 1", *copied(1), *taken(0)],
        *["read 2", *copied(2), *taken(1)],
        *taken(2),
    ]
    assert notes == [0, 1, 2]


def test_without_reading_ahead_no_batch_is_read_before_the_step_on_the_one_before_is_queued() -> None:
    calls, notes = run([torch.tensor(number) for number in range(2)], ahead=False)
    assert calls == [
        *["read 0", "new stream", *copied(0), *taken(0)],
        *["read 1", *copied(1), *taken(1)],
    ]
    assert notes == [0, 1]


class Opaque:
    """Moved by a method of its own, its tensors out of reach."""

    def to(self, device: Any, non_blocking: bool = False) -> "Opaque":
        return self


@pytest.mark.parametrize(
    "batch", [{"x": Opaque()}, [torch.zeros(2, device="meta")], "no tensor"], ids=["opaque", "device", "none"]
)
def test_what_the_side_stream_could_not_keep_is_moved_with_the_work(batch: Any) -> None:
    streams = FakeStreams()
    where = []

    def move(batch: Any) -> Any:
        where.append(streams.now.name)
        return batch

    for ahead in (True, False):
        assert list(SideCopies(streams, CPU).over(iter([(batch, 1)]), move, ahead=ahead)) == [(batch, 1)]
    assert where == ["work", "work"] and not streams.calls


@dataclass
class Pair:
    left: Tensor
    right: dict[str, Any]


def test_all_tensors_of_a_nested_batch_are_found() -> None:
    one, two, three = torch.tensor(1), torch.tensor(2), torch.tensor(3)
    nested = Pair(one, {"a": [two, "text"], "b": (three, None, Tensor)})
    assert [int(tensor) for tensor in tensors_in(nested) or ()] == [1, 2, 3]
    assert tensors_in([one, Opaque()]) is None


SPECS: dict[str, tuple[Any, bool]] = {
    "a data set": ({"dataset": Numbers(12), "batch_size": 2}, True),
    "a stream": ({"dataset": Stream(12), "batch_size": 2}, True),
    "draws of the run's own": ({"dataset": Numbers(12), "batch_size": 2, "seed_samples": False}, False),
    "a list": ([torch.tensor([2 * n, 2 * n + 1]) for n in range(6)], True),
    "a function": (lambda: (torch.tensor([2 * n, 2 * n + 1]) for n in range(6)), False),
}


@pytest.mark.parametrize("kind", SPECS)
def test_positions_count_finished_batches_whatever_is_read_ahead(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, ahead = SPECS[kind]
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None, raising=False)

    def fed(streams: FakeStreams | None) -> Any:
        beside = None if streams is None else SideCopies(streams, CPU)
        return make_feed(spec, train=True, seed=5, beside=beside)

    def seen(feed: Any, info: Any) -> list[Any]:
        return [(batch.tolist(), info.size, info.positions and list(info.positions)) for batch in feed]

    truth = seen(*fed(None))
    for stop in range(7):
        streams = FakeStreams()
        feed, info = fed(streams)
        before, batches = [], iter(feed)
        for _ in range(stop):
            before.append((next(batches).tolist(), info.size, info.positions and list(info.positions)))
            feed.finish()
        copies = sum("side records" in call for call in streams.calls)
        assert copies == (min(stop + ahead, 6) if stop else 0)
        state = feed.state_dict()
        assert (state["batches"], state["consumed"]) == (stop, 2 * stop)
        again, noted = fed(FakeStreams())
        again.load_state_dict(state)
        assert before + seen(again, noted) == truth, stop


def test_the_host_has_no_use_for_it() -> None:
    assert CPUAccelerator().side_copies(CPU) is None
