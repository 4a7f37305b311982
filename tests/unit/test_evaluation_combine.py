"""Putting together what ranks gathered, against what one process would have gathered."""

import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stratrun.errors import MetricError
from stratrun.evaluation.combine import Order, Seen, merge, on_cpu
from tests.unit.evaluation_ranks import shares

QUICK = settings(max_examples=60, deadline=None)
worlds = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6))


def seen_by(parts: list[list[list[int]]]) -> list[Seen]:
    return [Seen([len(batch) for batch in part], list(part)) for part in parts]


@QUICK
@given(worlds)
def test_things_of_samples_come_in_the_order_of_the_samples(world: tuple[int, int, int]) -> None:
    parts = shares(*world)
    things = [[f"sample {i}" for batch in part for i in batch] for part in parts]
    counts = [[len(batch) for batch in part] for part in parts]
    assert Order(seen_by(parts)).sort(things, counts) == [f"sample {i}" for i in range(world[0])]


@QUICK
@given(worlds)
def test_rows_of_a_state_come_in_the_order_of_the_samples(world: tuple[int, int, int]) -> None:
    parts = shares(*world)
    scores = [[torch.tensor(batch) * 1.5 for batch in part] for part in parts]
    tables = [[torch.tensor(batch)[:, None].expand(-1, 2) for batch in part] for part in parts]
    joined = Order(seen_by(parts)).arrange({"scores": scores, "tables": tables})
    everything = torch.arange(world[0])
    assert torch.equal(torch.cat(joined["scores"]), everything * 1.5)
    assert torch.equal(torch.cat(joined["tables"])[:, 1], everything)


@QUICK
@given(worlds)
def test_things_of_batches_come_in_the_order_of_their_first_samples(world: tuple[int, int, int]) -> None:
    parts = shares(*world)
    firsts = [[batch[0] for batch in part] for part in parts]
    order = Order(seen_by(parts))
    twice = order.sort(
        [[i for i in part for _ in range(11)] for part in firsts], [[11] * len(p) for p in parts]
    )
    assert all(a <= b for a, b in pairwise(twice))
    chunks = [[torch.zeros(first % 3 + 50) + first for first in part] for part in firsts]
    values = [int(chunk[0]) for chunk in order.arrange({"chunks": chunks})["chunks"]]
    assert values == sorted(values)


@QUICK
@given(worlds, st.booleans())
def test_states_that_belong_together_are_never_torn_apart(world: tuple[int, int, int], known: bool) -> None:
    """One list has a row for each sample, the other leaves samples out, as `ignore_index` does."""
    parts = shares(*world)
    kept = [[[i for i in batch if i % 3] for batch in part] for part in parts]
    names: dict[str, list[list[Tensor]]] = {
        "one": [[torch.tensor(batch, dtype=torch.long) for batch in part] for part in kept],
        "other": [[torch.tensor(batch, dtype=torch.long) * 2 for batch in part] for part in kept],
        "unused": [[] for _ in parts],
    }
    ranks = seen_by(parts) if known else [Seen([len(b) for b in part], [None] * len(part)) for part in parts]
    joined = Order(ranks).arrange(names)
    one, other = torch.cat(joined["one"]), torch.cat(joined["other"])
    assert torch.equal(one * 2, other)
    assert sorted(one.tolist()) == [i for i in range(world[0]) if i % 3]
    assert joined["unused"] == []


def test_lists_of_different_kinds_stay_in_the_order_of_the_ranks() -> None:
    ranks = seen_by([[[0, 2], [4]], [[1, 3]]])
    rows = [[torch.tensor([0, 2]), torch.tensor([4])], [torch.tensor([1, 3])]]
    losses = [["0-2", "4"], ["1-3"]]
    joined = Order(ranks).arrange({"rows": rows, "losses": losses})
    assert torch.cat(joined["rows"]).tolist() == [0, 2, 4, 1, 3]
    assert joined["losses"] == ["0-2", "4", "1-3"]


def test_a_second_pass_over_data_comes_after_the_first() -> None:
    ranks = seen_by([[[0, 2], [0, 2]], [[1, 3], [1]]])
    things = [["a0", "a2", "b0", "b2"], ["a1", "a3", "b1"]]
    assert Order(ranks).sort(things, [[2, 2], [2, 1]]) == ["a0", "a1", "a2", "a3", "b0", "b1", "b2"]


def test_things_that_were_also_removed_stay_as_they_are() -> None:
    ranks = seen_by([[[0, 2], [4]], [[1, 3]]])
    assert Order(ranks).sort([["x"], ["y", "z"]], [[2, -1], [2]]) == ["x", "y", "z"]


@QUICK
@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=6), st.integers(-5, 5))
def test_a_sum_over_ranks_counts_its_default_once(values: list[int], default: int) -> None:
    expected = default + sum(values)
    assert merge("sum", [default + value for value in values], default) == expected
    tensors = [torch.tensor([default + value]) for value in values]
    assert merge("sum", tensors, torch.tensor([default])).tolist() == [expected]


@QUICK
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6))
def test_extremes_and_sums_over_ranks_are_those_of_all_values(values: list[float]) -> None:
    tensors = [torch.tensor(value) for value in values]
    for given_values in (values, tensors):
        assert float(merge("max", given_values, 0.0)) == max(values)
        assert float(merge("min", given_values, 0.0)) == min(values)
    assert float(merge("sum", tensors, torch.tensor(0.0))) == float(
        torch.tensor(values).double().sum().float()
    )


def test_a_sum_keeps_its_kind() -> None:
    for kind in (torch.int32, torch.int64, torch.float16, torch.float32, torch.float64):
        assert merge("sum", [torch.ones(2, dtype=kind)] * 3, torch.zeros(2, dtype=kind)).dtype == kind


def test_a_rank_that_still_has_the_default_takes_the_shape_of_the_others() -> None:
    merged = merge("sum", [torch.zeros(()), torch.ones(3)], torch.zeros(()))
    assert merged.tolist() == [1, 1, 1]
    with pytest.raises(MetricError, match=r"its shape differs from rank to rank: \[2\], \[3\]"):
        merge("sum", [torch.ones(2), torch.ones(3)], torch.zeros(()))


def test_a_number_and_a_tensor_add_up_in_the_precision_of_the_host() -> None:
    assert float(merge("sum", [0.1, torch.tensor(0.2, dtype=torch.float64)], 0)) == pytest.approx(
        0.3, rel=1e-15
    )


def test_what_is_sent_leaves_the_memory_behind_that_it_looks_into() -> None:
    large = torch.zeros(1000, 1000)
    sent = on_cpu({"row": large[3], "pair": (large[0, :2], "text"), "same": [large[3]]})
    assert len(pickle.dumps(sent)) < 20_000
    assert sent["row"].shape == (1000,)
    assert sent["pair"][1] == "text"


def test_what_is_shared_is_sent_once() -> None:
    state = torch.zeros(10_000)
    memo: dict[int, Any] = {}
    sent = [on_cpu(value, memo) for value in (state, [state], state)]
    assert len(pickle.dumps(sent)) < 60_000
    assert sent[0] is sent[2] is sent[1][0]


def test_what_moves_itself_is_asked_to() -> None:
    class Sample:
        """As detection libraries have them."""

        moved = ""

        def to(self, device: str) -> "Sample":
            self.moved = device
            return self

    sample = on_cpu([Sample()])[0]
    assert sample.moved == "cpu"
    assert isinstance(on_cpu(torch.ones(2, requires_grad=True)), Tensor)
    assert not on_cpu(torch.ones(2, requires_grad=True)).requires_grad
