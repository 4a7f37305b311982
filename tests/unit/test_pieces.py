"""Batches cut by samples, outputs put together, and what counts as a lack of memory."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from stratrun.engine.finding import largest
from stratrun.engine.memory import is_out_of_memory
from stratrun.engine.pieces import joined, pieces_of, resized
from stratrun.errors import ConfigError
from stratrun.hooks import MicroBatchHook


class Pair(NamedTuple):
    inputs: Tensor
    targets: Tensor


@dataclass
class Marked:
    inputs: Tensor
    names: list[str]
    scale: float


def test_what_has_an_entry_for_each_sample_is_cut_and_all_else_is_whole() -> None:
    table = torch.zeros(4, 2)
    batch = {
        "pair": Pair(torch.arange(5), torch.arange(10).view(5, 2)),
        "marked": Marked(torch.arange(5), list("abcde"), 0.5),
        "table": table,
        "number": torch.tensor(3.0),
        "words": ["x", "y"],
    }
    pieces = pieces_of(batch, 5, 2)
    assert [(piece.size, piece.share) for piece in pieces] == [(3, 0.6), (2, 0.4)]
    one, other = (piece.batch for piece in pieces)
    assert type(one["pair"]) is Pair
    assert one["pair"].inputs.tolist() == [0, 1, 2]
    assert other["pair"].targets.tolist() == [[6, 7], [8, 9]]
    assert (one["marked"].names, other["marked"].names) == (["a", "b", "c"], ["d", "e"])
    assert other["marked"].scale == 0.5
    assert one["table"] is table
    assert one["words"] == ["x", "y"]
    assert batch["pair"].inputs.tolist() == [0, 1, 2, 3, 4]  # type: ignore[union-attr]


def test_a_batch_of_any_size_is_made_of_the_samples_there_are() -> None:
    batch = (torch.arange(3), ["a", "b", "c"])
    assert [resized(batch, 3, n)[1] for n in (1, 3, 7)] == [["a"], ["a", "b", "c"], list("abcabca")]
    assert resized(batch, 3, 5)[0].tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("weighted", [False, True])
def test_outputs_of_parts_are_those_of_the_batch(weighted: bool) -> None:
    values, weights = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([1.0, 1.0, 2.0, 3.0, 5.0])
    share = weights if weighted else torch.ones(5)

    def step(rows: slice) -> dict[str, Any]:
        mean = (values[rows] * share[rows]).sum() / share[rows].sum()
        told = {"loss": mean, "parts": {"half": mean / 2}, "rows": values[rows], "name": "n"}
        return {**told, "weight": share[rows].sum()} if weighted else told

    pieces = pieces_of(values, 5, 2)
    found = joined([step(slice(0, 3)), step(slice(3, 5))], pieces)
    truth = step(slice(0, 5))
    assert found.keys() == truth.keys()
    torch.testing.assert_close(found["loss"], truth["loss"])
    torch.testing.assert_close(found["parts"]["half"], truth["parts"]["half"])
    assert found["rows"].tolist() == truth["rows"].tolist()
    assert found.get("weight") == truth.get("weight")


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_the_loss_of_a_batch_without_weight_is_the_number_that_it_is_of_its_parts(kind: Any) -> None:
    pieces = pieces_of(torch.zeros(3), 3, 2)
    parts = [{"loss": torch.tensor(loss), "weight": kind(0.0)} for loss in (0.0, 3.0)]
    found = joined(parts, pieces)
    assert (found["loss"].item(), float(found["weight"])) == (pytest.approx(1.0), 0.0)


def test_the_largest_size_is_found_in_few_attempts() -> None:
    for limit in (1, 2, 3, 12, 100):
        for room in range(limit + 2):
            asked: list[int] = []

            def fits(size: int, room: int = room, asked: list[int] = asked) -> bool:
                asked.append(size)
                return size <= room

            assert largest(fits, limit) == min(room, limit)
            assert max(asked) <= limit
            assert len(asked) == len(set(asked)) <= 2 * limit.bit_length() + 1


def test_errors_of_allocators_are_told_from_others() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


@pytest.mark.parametrize(
    "options", [{"parts": 0}, {"parts": True}, {"trials": -1}, {"find": 0}, {"find": 1.5}]
)
def test_numbers_that_are_none_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"MicroBatchHook: {name}="):
        MicroBatchHook(**options)
