"""Going on in the middle of an epoch with data that is not what it was."""

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler

from stratrun.errors import DataError
from tests.feeds import Numbers, Stream, make_feed, rest_of_epoch


class Stateful:
    """Batches of one sample, from a loader that keeps its position."""

    def __init__(self, samples: int) -> None:
        self.samples, self.position = samples, 0

    def __iter__(self) -> Any:
        while self.position < self.samples:
            self.position += 1
            yield torch.tensor([self.position - 1])
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def ready(samples: int) -> list[torch.Tensor]:
    return [torch.tensor([n]) for n in range(samples)]


KINDS = {
    "a data set with an index": lambda n: {"dataset": Numbers(n), "batch_size": 1, "shuffle": False},
    "a stream": lambda n: {"dataset": Stream(n), "batch_size": 1},
    "a sampler of your own": lambda n: {
        "dataset": Numbers(n),
        "batch_size": 1,
        "sampler": SequentialSampler(range(n)),
    },
    "batches that come ready": ready,
    "a loader that keeps its own position": Stateful,
}


def state_after(spec: Any, batches: int) -> dict[str, Any]:
    feed, _ = make_feed(spec)
    for _ in itertools.islice(feed, batches):
        feed.finish()
    return feed.state_dict()


@pytest.mark.parametrize(("then", "now"), list(itertools.permutations(KINDS, 2)))
def test_another_kind_of_data_is_refused_within_an_epoch_and_taken_at_its_beginning(
    then: str, now: str
) -> None:
    feed, info = make_feed(KINDS[now](6))
    with pytest.raises(DataError, match="the rest of that epoch cannot be told") as caught:
        feed.load_state_dict(state_after(KINDS[then](6), 2))
    assert f"kind={then!r}, and now kind={now!r}" in str(caught.value)
    feed, info = make_feed(KINDS[now](6))
    feed.load_state_dict(state_after(KINDS[then](6), 0))
    assert [samples for samples, _ in rest_of_epoch(feed, info)] == [[n] for n in range(6)]


def test_a_position_that_says_nothing_of_the_data_is_no_position_in_a_data_set() -> None:
    state = state_after(KINDS["a data set with an index"](6), 2)
    feed, _ = make_feed(KINDS["a data set with an index"](6))
    with pytest.raises(DataError, match="samples=None, and now samples=6"):
        feed.load_state_dict({key: state[key] for key in ("epoch", "consumed", "batches")})


@pytest.mark.parametrize(("left", "told"), [(5, None), (4, None), (3, 3), (0, 0)])
@pytest.mark.parametrize(
    "kind", ["a stream", "a sampler of your own", "batches that come ready", "generator"]
)
def test_data_that_ends_before_the_position_is_an_error_that_says_both(
    kind: str, left: int, told: int | None
) -> None:
    make: Any = KINDS.get(kind, lambda n: lambda: iter(ready(n)))
    feed, info = make_feed(make(max(left, 1)) if kind == "a sampler of your own" else make(left))
    told = 1 if told == 0 and kind == "a sampler of your own" else told
    feed.load_state_dict(state_after(make(6), 4))
    if told is None:
        assert [samples for samples, _ in rest_of_epoch(feed, info)] == [[n] for n in range(4, left)]
        return
    with pytest.raises(DataError, match=rf"after 4 (samples|batches) of an epoch.* ends after {told}:"):
        rest_of_epoch(feed, info)


def test_a_loader_that_keeps_its_position_and_ends_before_that_is_an_error() -> None:
    class Forgetful(Stateful):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.samples = 1

    feed, _ = make_feed(Stateful(6))
    batches = iter(feed)
    for _ in range(3):
        next(batches)
    state = {**feed.state_dict(), "batches": 4, "consumed": 4, "loader": {"state": {}, "batches": 2}}
    other, info = make_feed(Forgetful(6))
    other.load_state_dict(state)
    with pytest.raises(DataError, match="after 4 batches of an epoch, and the data now ends after 3:"):
        rest_of_epoch(other, info)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_say_what_a_stream_that_became_shorter_lacks(workers: int, ranks: int) -> None:
    def spec(samples: int) -> dict[str, Any]:
        return {"dataset": Stream(samples), "batch_size": 1, "num_workers": workers}

    # Without get_worker_info each worker reads all of the stream.
    first, _ = make_feed(spec(6), 0, ranks)
    for _ in itertools.islice(first, 2):
        first.finish()
    done = first.state_dict()["consumed" if workers == 1 else "batches"]
    feed, info = make_feed(spec(0), 0, ranks)
    feed.load_state_dict(first.state_dict())
    unit = "samples" if workers == 1 else "batches"
    with pytest.raises(DataError, match=f"after {done} {unit} of an epoch, and the data now ends after 0:"):
        rest_of_epoch(feed, info)
