"""The buffer's means against sums written out here, and what it does to tensors meanwhile."""

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stratrun.distributed import Collectives, ProcessEnv
from stratrun.loggers import RecordBuffer
from stratrun.loggers.unread import Unread
from tests.ranks import Ranks


class Operations(TorchDispatchMode):
    """Names of the tensor operations that run within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class Counting:
    """One rank's collectives that count the exchanges."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._ranks = Collectives(ProcessEnv())

    def sum(self, tensor: Tensor) -> Tensor:
        self.calls.append("sum")
        return self._ranks.sum(tensor)

    def gather(self, obj: Any) -> list[Any]:
        self.calls.append("gather")
        return self._ranks.gather(obj)


def steps(count: int) -> Iterator[tuple[dict[str, Any], int]]:
    """What `count` training steps give, and how many samples each had."""
    generator = torch.Generator().manual_seed(3)
    for i in range(count):
        loss = torch.rand((), generator=generator)
        values: dict[str, Any] = {"loss": loss, "time": float(torch.rand((), generator=generator))}
        if i % 3 == 2:
            values["grad_norm"] = torch.rand(1, generator=generator, dtype=torch.float64)
        yield values, 1 + i % 4


def exact_mean(values: list[float], weights: list[int]) -> float:
    total = sum((Fraction(v) * w for v, w in zip(values, weights, strict=True)), Fraction())
    return float(total / sum(weights))


def test_a_window_is_the_mean_over_the_samples_since_the_last_one() -> None:
    buffer = RecordBuffer()
    for window in range(2):
        seen = list(steps(10))[window * 5 : window * 5 + 5]
        for values, size in seen:
            buffer.add(values, size)
        means = buffer.window()
        for name in ("loss", "time", "grad_norm"):
            pairs = [(float(values[name]), size) for values, size in seen if name in values]
            truth = exact_mean([value for value, _ in pairs], [size for _, size in pairs])
            assert means[name] == pytest.approx(truth, rel=1e-14)


def test_without_a_size_each_iteration_counts_as_one() -> None:
    buffer = RecordBuffer()
    buffer.add({"loss": 1.0})
    buffer.add({"loss": 4.0})
    assert buffer.window() == {"loss": 2.5}


@pytest.mark.parametrize("length", [None, 4])
def test_numbers_in_a_list_of_the_callers_count_as_if_each_had_been_added(length: int | None) -> None:
    added, asked = RecordBuffer(), RecordBuffer()
    added.length = asked.length = length
    mine: dict[str, list[float]] = {"time": []}
    asked.ask(mine)
    for i, (values, size) in enumerate(steps(30)):
        added.add({"loss": values["loss"]}, size)
        asked.add({"loss": values["loss"]}, size)
        added.add({"time": values["time"]})
        mine["time"].append(values["time"])
        if i % 7 == 6:
            assert asked.window() == added.window()
    assert asked.state_dict() == added.state_dict()
    assert asked.epoch() == added.epoch()
    assert mine == {"time": []}


def test_a_size_may_be_a_tensor() -> None:
    buffer = RecordBuffer()
    tokens = torch.tensor(3)
    buffer.add({"loss": torch.tensor(1.0)}, tokens)
    tokens.fill_(100)
    buffer.add({"loss": torch.tensor(5.0)}, torch.tensor([1.0]))
    assert buffer.window() == {"loss": 2.0}


def test_what_weighs_nothing_counts_nothing_even_when_it_is_nan() -> None:
    buffer = RecordBuffer()
    buffer.add({"loss": torch.tensor(2.0)}, 4)
    buffer.add({"loss": torch.tensor(math.nan), "other": 1.0}, 0)
    assert buffer.window() == {"loss": 2.0}


def test_a_nan_that_counts_is_shown() -> None:
    buffer = RecordBuffer()
    buffer.add({"loss": torch.tensor(2.0)}, 4)
    buffer.add({"loss": torch.tensor(math.nan)}, 1)
    assert math.isnan(buffer.window()["loss"])


def test_what_is_no_single_number_is_passed_over() -> None:
    buffer = RecordBuffer()
    junk = {"a": "text", "b": torch.zeros(2), "c": None, "d": torch.zeros(0), "e": 1j, "f": torch.tensor(1j)}
    buffer.add(
        {**junk, "count": torch.tensor(7), "flag": True, "low": torch.tensor(0.5, dtype=torch.bfloat16)}
    )
    assert buffer.window() == {"count": 7.0, "flag": 1.0, "low": 0.5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_whose_storage_is_used_again_keeps_what_it_was(dtype: torch.dtype) -> None:
    buffer, reused = RecordBuffer(), torch.tensor(0.0, dtype=dtype)
    for value in (1.0, 2.0, 6.0):
        reused.fill_(value)
        buffer.add({"loss": reused})
    assert buffer.window() == {"loss": 3.0}


def test_the_graph_behind_a_loss_is_let_go() -> None:
    buffer, weight = RecordBuffer(), torch.ones((), requires_grad=True)
    buffer.add({"loss": weight * 3})
    buffer.add({"loss": weight * 5})
    assert buffer.window() == {"loss": 4.0}
    assert weight.grad_fn is None and not weight.grad


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are taken as those of another device, whose values are not at hand."""
    monkeypatch.setattr("stratrun.loggers.unread.value_in_host", lambda number: None)


def test_a_value_in_host_memory_costs_no_operation() -> None:
    buffer, loss = RecordBuffer(), torch.tensor(0.1)
    with Operations() as operations:
        buffer.add({"loss": loss}, 8)
        buffer.add({"loss": loss.double()}, 8)
    assert operations.names == ["aten._to_copy.default"]
    assert buffer.window() == {"loss": loss.item()}


def test_between_log_points_a_value_costs_one_copy_and_is_never_read(elsewhere: None) -> None:
    buffer = RecordBuffer()
    buffer.add({"loss": torch.tensor(1.0), "acc": torch.tensor([0.5])})
    with Operations() as operations:
        for _ in range(10):
            buffer.add({"loss": torch.tensor(1.0, requires_grad=True).detach(), "time": 0.5}, 8)
    taken = [
        name for name in operations.names if name not in ("aten.detach.default", "aten.lift_fresh.default")
    ]
    assert taken == ["aten.copy_.default"] * 10


def test_a_log_point_reads_once_and_exchanges_once(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Counting()
    buffer, reads = RecordBuffer(exchange), []
    buffer.add({"loss": torch.tensor(1.0), "acc": torch.tensor(0.5), "time": 0.1}, 8)
    buffer.window()
    exchange.calls.clear()
    for values, size in steps(50):
        buffer.add(values, size)
    buffer.put({"lr": torch.tensor(0.1)})
    original = Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        if tensor.dtype is torch.float64 and tensor.numel() > 50:
            reads.append(tensor.numel())
        return original(tensor)

    monkeypatch.setattr(Tensor, "tolist", tolist)
    with Operations() as operations:
        buffer.window()
    assert len(reads) == 1
    assert "aten._local_scalar_dense.default" not in operations.names
    # `grad_norm` was new to everybody; now no name is.
    assert exchange.calls == ["sum", "gather", "sum"]
    exchange.calls.clear()
    buffer.add({"loss": torch.tensor(1.0)})
    buffer.window()
    assert exchange.calls == ["sum"]
    exchange.calls.clear()
    buffer.epoch()
    assert exchange.calls == ["sum"]


@pytest.mark.parametrize("count", [1023, 1024, 1025, 5000])
def test_long_windows_lose_nothing(count: int) -> None:
    buffer = RecordBuffer()
    for _ in range(2):
        for i in range(count):
            buffer.add({"loss": torch.tensor(float(i))})
        assert buffer.window() == {"loss": (count - 1) / 2}


def test_steps_in_inference_mode_and_outside_of_it_share_a_window() -> None:
    buffer = RecordBuffer()
    with torch.inference_mode():
        buffer.add({"loss": torch.tensor(1.0)})
    buffer.add({"loss": torch.tensor(3.0)})
    with torch.inference_mode():
        buffer.add({"loss": torch.tensor(5.0)})
    assert buffer.window() == {"loss": 3.0}


def test_an_epoch_spans_windows_and_then_starts_anew() -> None:
    buffer = RecordBuffer()
    for value in (1.0, 2.0, 3.0):
        buffer.add({"loss": torch.tensor(value)}, 2)
        buffer.window()
    buffer.add({"loss": torch.tensor(10.0)}, 6)
    assert buffer.epoch() == {"loss": 6.0}
    assert buffer.epoch() == {}
    buffer.add({"loss": torch.tensor(7.0)})
    assert buffer.epoch() == {"loss": 7.0}


def test_with_a_length_means_are_over_the_last_iterations() -> None:
    buffer = RecordBuffer()
    buffer.length = 3
    means = []
    for i in range(6):
        buffer.add({"loss": torch.tensor(float(i))})
        if i % 2:
            means.append(buffer.window()["loss"])
    assert means == [0.5, 2.0, 4.0]
    assert buffer.epoch() == {"loss": 2.5}


def test_what_is_put_is_neither_averaged_nor_kept() -> None:
    buffer = RecordBuffer()
    buffer.put({"lr": 0.1})
    buffer.put({"lr": torch.tensor(0.25)})
    buffer.add({"loss": 1.0})
    assert buffer.window() == {"loss": 1.0, "lr": 0.25}
    buffer.add({"loss": 1.0})
    assert buffer.window() == {"loss": 1.0}


def logged(buffer: RecordBuffer, start: int, stop: int) -> list[tuple[int, dict[str, float]]]:
    """Records of the steps from `start` to `stop`: a window each 4 steps, an epoch each 10."""
    found = []
    for i, (values, size) in enumerate(steps(stop)):
        if i < start:
            continue
        buffer.add(values, size)
        if (i + 1) % 4 == 0:
            found.append((i + 1, buffer.window()))
        if (i + 1) % 10 == 0:
            found.append((i + 1, buffer.epoch()))
    return found


@pytest.mark.parametrize("length", [None, 3, 7])
@pytest.mark.parametrize("stop", range(21))
def test_means_after_a_restart_are_bitwise_those_of_the_uninterrupted_run(
    stop: int, length: int | None
) -> None:
    whole, first, second = RecordBuffer(), RecordBuffer(), RecordBuffer()
    whole.length = first.length = length
    truth = logged(whole, 0, 20)
    before = logged(first, 0, stop)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    # A run sets it when training starts, which is after its state came back.
    second.length = length
    assert before + logged(second, stop, 20) == truth
    # Saving alone changes nothing either.
    assert before + logged(first, stop, 20) == truth


def means_of_rank(lonely: bool) -> tuple[list[dict[str, float]], list[list[str]]]:
    """Three log points of this rank's share of samples 0..9; rank 0 alone may log `extra`."""
    import torch.distributed as dist

    env = ProcessEnv(dist.get_rank(), dist.get_rank(), dist.get_world_size(), True)
    counting, results, calls = Counting(), [], []
    counting._ranks = Collectives(env, dist.group.WORLD)
    buffer = RecordBuffer(counting)
    for point in range(3):
        for i in range(env.rank, 10, env.world_size):
            buffer.add({"loss": torch.tensor(float(i + point))}, 1 + i)
        if lonely and point > 0 and env.rank == 0:
            buffer.add({"extra": torch.tensor(5.0)}, 3)
        results.append(buffer.window())
        calls.append(list(counting.calls))
        counting.calls.clear()
    return results, calls


def test_means_are_over_the_samples_of_all_ranks_in_one_exchange(two_ranks: Ranks) -> None:
    truth = [exact_mean([float(i + point) for i in range(10)], list(range(1, 11))) for point in range(3)]
    for results, calls in two_ranks(means_of_rank, lonely=False):
        assert [means["loss"] for means in results] == pytest.approx(truth, rel=1e-14)
        assert calls == [["gather", "sum"], ["sum"], ["sum"]]


def test_a_name_that_one_rank_alone_has_reaches_all_of_them(two_ranks: Ranks) -> None:
    for results, calls in two_ranks(means_of_rank, lonely=True):
        assert [means.get("extra") for means in results] == [None, 5.0, 5.0]
        assert calls == [["gather", "sum"], ["sum", "gather", "sum"], ["sum"]]


def test_what_was_read_is_let_go(elsewhere: None) -> None:
    unread = Unread()
    for number in (1.0, 2.0):
        place = unread.take(torch.tensor(number))
        assert (place, unread.read()) == (0, [number])
    assert unread.read() == []


@pytest.mark.parametrize("in_host", [True, False])
def test_values_that_nobody_asks_for_are_summed_now_and_then_and_means_are_the_same_to_the_bit(
    in_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_host:  # as on a device, whose numbers stay there until they are read
        monkeypatch.setattr("stratrun.loggers.unread.value_in_host", lambda number: None)
    plain, bounded, waiting = RecordBuffer(), RecordBuffer(), []
    for values, size in steps(100):
        plain.add(values, size)
    monkeypatch.setattr("stratrun.loggers.buffer.WAITING", 8)
    for values, size in steps(100):
        bounded.add(values, size)
        waiting.append(max(len(series.values) for series in bounded._series.values()))
    # The last of each step's names is counted, and there are two that are last.
    assert max(waiting) < 2 * 8
    assert bounded.window() == plain.window()
    assert bounded.epoch() == plain.epoch()
