"""Going on from a position costs the same wherever it lies: counted, not timed."""

import gc
import random
import sys
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset

from stratrun.data import order
from stratrun.data.order import epoch_order, indices_at
from tests.feeds import make_feed

SAMPLES, BATCH = 50_000_000, 32
EARLY, LATE = 10, 1_000_000  # batches that are done


class Virtual(Dataset[Tensor]):
    """So many samples that nobody could hold them; keeps which were read. Those in `gone` fail."""

    def __init__(self, samples: int, gone: Container[int] = ()) -> None:
        self.samples = samples
        self.read: list[int] = []
        self._gone = gone

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Tensor:
        assert index not in self._gone, f"sample {index} was read again"
        self.read.append(index)
        return torch.tensor(index)


class Operations(TorchDispatchMode):
    """Counts what torch computes, and how large it is; drawing numbers is among it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@contextmanager
def calls(counts: Counter[str]) -> Iterator[None]:
    """Counts calls of functions, those of extension modules too."""

    def note(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            name = frame.f_code.co_qualname if event == "call" else getattr(argument, "__qualname__", "?")
            # What abstract classes have in store, anybody's import may make them look up again.
            if "subclass" not in name and "instancecheck" not in name:
                counts[name] += 1

    gc.collect()
    gc.disable()  # what an earlier test left behind ends in here else
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        gc.enable()


def cost(batches: int, shuffle: bool, samples: int = SAMPLES) -> dict[str, Any]:
    """What it takes to make a feed, bring it to a position, and read three batches."""
    consumed = batches * BATCH
    expected = indices_at(epoch_order(5, 0, samples, shuffle), range(consumed, consumed + 3 * BATCH))
    dataset = Virtual(samples, () if shuffle else range(consumed))
    operations, called = Operations(), Counter[str]()
    with operations, calls(called):
        feed, _ = make_feed({"dataset": dataset, "batch_size": BATCH, "shuffle": shuffle}, seed=5)
        state = {**feed.state_dict(), "consumed": consumed, "batches": batches}
        feed.load_state_dict(state)
        read = [batch for _, batch in zip(range(3), feed, strict=False)]
    assert [index for batch in read for index in batch.tolist()] == expected
    # A position has one index, so that none is read here which stands at an earlier one.
    assert dataset.read == expected
    return {
        "reads": len(dataset.read),
        "operations": operations.counts,
        "calls": called,
        "largest": operations.largest,
    }


@pytest.mark.parametrize("shuffle", [True, False])
def test_step_ten_and_step_a_million_cost_the_same_reads_draws_and_calls(shuffle: bool) -> None:
    cost(EARLY, shuffle)  # what is done once in a process
    early, late = cost(EARLY, shuffle), cost(LATE, shuffle)
    assert early["reads"] == late["reads"]
    assert early["operations"] == late["operations"]
    assert early["calls"] == late["calls"]
    assert early["largest"] <= 4096, "nothing is held that grows with the data set"


def test_a_small_data_set_is_gone_on_with_at_the_same_cost_from_any_position() -> None:
    cost(EARLY, True, 100_000)
    early, late = cost(EARLY, True, 100_000), cost(3_000, True, 100_000)
    assert (early["reads"], early["operations"], early["calls"]) == (
        late["reads"],
        late["operations"],
        late["calls"],
    )


def test_a_position_reads_exactly_what_an_uninterrupted_epoch_reads_there() -> None:
    samples = order.LISTED + 5
    read: list[list[int]] = []
    whole, _ = make_feed({"dataset": Virtual(samples), "batch_size": BATCH}, seed=5)
    for batch, _ in zip(whole, range(130), strict=False):
        read.append(batch.tolist())
    for done in (1, 63, 64, 100):
        feed, _ = make_feed({"dataset": Virtual(samples), "batch_size": BATCH}, seed=5)
        feed.load_state_dict({**feed.state_dict(), "consumed": done * BATCH, "batches": done})
        assert [batch.tolist() for batch, _ in zip(feed, range(20), strict=False)] == read[done : done + 20]


def test_the_run_s_own_generators_are_not_drawn_from() -> None:
    states = random.getstate(), torch.get_rng_state()
    cost(LATE, True)
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.get_rng_state())
