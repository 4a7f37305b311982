"""The logging and timing hooks, driven point by point as a loop drives them."""

import json
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from stratrun.errors import ConfigError
from stratrun.hooks import logging as logging_module
from stratrun.hooks import timer as timer_module
from stratrun.hooks.base import Hook
from stratrun.hooks.dispatch import HookList
from stratrun.hooks.logging import LoggerHook, learning_rates
from stratrun.hooks.timer import IterTimerHook
from stratrun.loggers import RecordBuffer
from stratrun.state import BatchInfo, TrainState

LENGTH = 7


class FakeRun:
    """As much of a `RunContext` as these hooks use."""

    def __init__(self, *hooks: Any, max_epochs: int | None = 3) -> None:
        self.state = TrainState()
        self.records = RecordBuffer()
        self.max_epochs = max_epochs
        self.max_iters = max_epochs and max_epochs * LENGTH
        sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.25)
        self.engine = SimpleNamespace(
            batch=BatchInfo(size=2), optimizers={"optimizer": sgd}, memory=lambda: {"memory": 100.0}
        )
        self.logged: list[tuple[str, int, dict[str, float]]] = []
        self.hooks = HookList()
        for hook in hooks:
            self.hooks.register(hook)

    @property
    def iter(self) -> int:
        return self.state.iter

    @property
    def step(self) -> int:
        return self.state.step

    def log(self, values: Mapping[str, Tensor | float], *, kind: str = "train") -> None:
        self.logged.append((kind, self.iter, {name: float(value) for name, value in values.items()}))

    def call(self, point: str, **details: Any) -> None:
        self.hooks.call(cast(Any, self), point, details)

    call_hooks = call

    def train(self, start: int = 0, stop: int = 3 * LENGTH) -> None:
        """Iterations from `start` to `stop`; the loss of the one that ends as number n is n."""
        self.call("before_train")
        for i in range(start, stop):
            if i % LENGTH == 0:
                self.call("before_train_epoch")
            self.call("before_train_iter", batch_idx=i, data_batch=None)
            self.state.iter += 1
            self.engine.batch.size = 1 + i % 3
            outputs = {"loss": torch.tensor(i + 1.0) / 3, "text": "no number"}
            self.call("after_train_iter", batch_idx=i, data_batch=None, outputs=outputs)
            if self.iter % LENGTH == 0:
                self.state.epoch += 1
                self.call("after_train_epoch")
        self.call("after_train")

    def of(self, kind: str, name: str | None = None) -> list[Any]:
        found = [(i, values) for k, i, values in self.logged if k == kind]
        return found if name is None else [(i, values[name]) for i, values in found if name in values]


def mean_loss(start: int, stop: int) -> float:
    """Of the iterations that end as numbers `start + 1` to `stop`, by their sizes."""
    sizes = [1 + i % 3 for i in range(start, stop)]
    losses = [float(torch.tensor(i + 1.0) / 3) for i in range(start, stop)]
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


def test_windows_are_logged_at_the_interval_and_epochs_at_their_end() -> None:
    run = FakeRun(LoggerHook(interval=5))
    run.train()
    assert run.of("train", "loss") == [(i, pytest.approx(mean_loss(i - 5, i))) for i in (5, 10, 15, 20)]
    assert run.of("train", "loss_epoch") == [
        (7 * e, pytest.approx(mean_loss(7 * e - 7, 7 * e))) for e in (1, 2, 3)
    ]


def test_a_window_smooths_over_more_than_the_interval() -> None:
    run = FakeRun(LoggerHook(interval=5, window=8))
    run.train()
    truth = [(i, pytest.approx(mean_loss(max(i - 8, 0), i))) for i in (5, 10, 15, 20)]
    assert run.of("train", "loss") == truth


def test_a_record_has_learning_rate_memory_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(LoggerHook(interval=5))
    # Each iteration takes two seconds.
    monkeypatch.setattr(logging_module, "perf_counter", lambda: 2.0 * run.iter)
    run.train()
    for i, values in run.of("train"):
        if "loss" in values:
            assert values.keys() == {"loss", "lr", "memory", "eta"}
            assert (values["lr"], values["memory"], values["eta"]) == (0.25, 100.0, 2.0 * (21 - i))


def test_a_training_shorter_than_the_interval_is_logged_at_its_end() -> None:
    run = FakeRun(LoggerHook(), max_epochs=None)
    run.train(stop=5)
    assert run.of("train", "loss") == [(5, pytest.approx(mean_loss(0, 5)))]


def test_what_an_epoch_told_is_not_told_again_at_the_end() -> None:
    run = FakeRun(LoggerHook())
    run.train()
    assert run.of("train", "loss") == []


def test_a_weight_of_the_step_is_what_means_go_by() -> None:
    run = FakeRun(LoggerHook(interval=3))
    run.call("before_train")
    for loss, weight, size in ((1.0, torch.tensor(9), 4), (5.0, torch.tensor(3), 4), (100.0, 7, 0)):
        run.state.iter += 1
        run.engine.batch.size = size
        outputs = {"loss": torch.tensor(loss), "weight": weight}
        run.call("after_train_iter", batch_idx=0, data_batch=None, outputs=outputs)
        assert outputs.keys() == {"loss", "weight"}
    ((_, values),) = run.of("train")
    assert values["loss"] == 2.0
    assert "weight" not in values


def test_a_step_may_give_a_bare_loss_or_nothing() -> None:
    run = FakeRun(LoggerHook(interval=2))
    run.call("before_train")
    for outputs in (torch.tensor(3.0), None):
        run.state.iter += 1
        run.call("after_train_iter", batch_idx=0, data_batch=None, outputs=outputs)
    assert run.of("train", "loss") == [(2, 3.0)]


def test_results_of_evaluations_are_logged_under_their_job() -> None:
    run = FakeRun(LoggerHook())
    run.call("after_val_epoch", metrics={"accuracy": 0.5})
    run.call("after_test_epoch", metrics={"accuracy": 0.75})
    # A custom loop may have none to give.
    run.call("after_val_epoch")
    run.call("after_test_epoch", metrics={})
    assert (run.of("val"), run.of("test")) == ([(0, {"accuracy": 0.5})], [(0, {"accuracy": 0.75})])


def test_progress_is_shown_twice_a_second_and_ended_however_the_run_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = FakeRun(LoggerHook(interval=1000))
    now = [0.0]
    monkeypatch.setattr(logging_module, "perf_counter", lambda: now[0])
    run.call("before_train")
    assert run.of("progress") == [(0, {"max_epochs": 3.0, "max_iters": 21.0})]
    run.state.iter = 1
    for job in ("train", "val", "test", "predict"):
        run.logged.clear()
        for i in range(100):
            now[0] += 0.01
            run.call(f"after_{job}_iter", batch_idx=i, data_batch=None, outputs=None)
        assert 1 <= len(run.of("progress")) <= 3
    for point, details in (("after_train", {}), ("after_run", {}), ("on_exception", {"exception": None})):
        run.logged.clear()
        run.call(point, **details)
        assert run.of("progress") == [(1, {"done": 1.0})]


@pytest.mark.parametrize("stop", range(0, 3 * LENGTH + 1, 2))
def test_losses_logged_after_a_restart_are_bitwise_those_of_the_uninterrupted_run(stop: int) -> None:
    whole, first, second = (FakeRun(LoggerHook(interval=5, window=6)) for _ in range(3))
    whole.train()
    first.hooks.register(_Saver(stop))
    first.train()
    saver = next(hook for hook in first.hooks if isinstance(hook, _Saver))
    if saver.saved is not None:
        counters, records = json.loads(saver.saved)
        second.state = TrainState(**counters)
        second.records.load_state_dict(records)
    second.train(start=second.iter)
    for name in ("loss", "loss_epoch"):
        truth = whole.of("train", name)
        # Saved at the end of an iteration, before the end of its epoch was told.
        assert second.of("train", name) == [(i, v) for i, v in truth if i > second_start(saver, name, stop)]


class _Saver(Hook):
    """Stands for the checkpoint hook, at its place in the order."""

    priority = 90

    def __init__(self, stop: int) -> None:
        self.stop = stop
        self.saved: str | None = None

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.stop:
            self._save(runner)

    def after_train_epoch(self, runner: Any) -> None:
        if runner.iter == self.stop:
            self._save(runner)

    def _save(self, runner: Any) -> None:
        counters = {"epoch": runner.state.epoch, "iter": runner.state.iter}
        self.saved = json.dumps([counters, runner.records.state_dict()])


def second_start(saver: _Saver, name: str, stop: int) -> int:
    return stop if saver.saved is not None else 0


def test_time_covers_the_whole_iteration_and_data_time_the_wait_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(timer_module, "perf_counter", lambda: now[0])
    run = FakeRun(IterTimerHook())

    def iteration(wait: float, work: float) -> None:
        now[0] += wait
        run.call("before_train_iter", batch_idx=0, data_batch=None)
        now[0] += work
        run.call("after_train_iter", batch_idx=0, data_batch=None, outputs=None)

    run.call("before_train")
    now[0] += 100.0
    run.call("before_train_epoch")
    iteration(1.0, 4.0)
    iteration(3.0, 8.0)
    now[0] += 100.0
    run.call("after_val", metrics={})
    iteration(2.0, 6.0)
    values = run.records.window()
    assert values == {"time": 8.0, "data_time": 2.0}
    run.call("before_log", values=values)
    assert values == {"time": 8.0, "data_time": 2.0, "data_share": 0.25}


def test_the_timer_counts_saving_for_the_iteration_and_not_as_waiting() -> None:
    class Slow(Hook):
        """Stands for a save."""

        priority = 90

        def after_train_iter(self) -> None: ...

    run = FakeRun(IterTimerHook(), Slow(), LoggerHook())
    order = re.findall(r"(\w+) \(\d+\)", run.hooks.describe().split("after_train_iter: ")[1].split("\n")[0])
    assert order == ["LoggerHook", "Slow", "IterTimerHook"]


def test_learning_rates_are_named_only_as_far_as_needed() -> None:
    def sgd(*groups: dict[str, Any]) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], **group} for group in groups])

    one, two = sgd({"lr": 0.1}), sgd({"lr": 0.2, "name": "head"}, {"lr": 0.3})
    assert learning_rates({"optimizer": one}) == {"lr": 0.1}
    assert learning_rates({"optimizer": two}) == {"lr/head": 0.2, "lr/1": 0.3}
    assert learning_rates({"g": one, "d": two}) == {"lr/g": 0.1, "lr/d/head": 0.2, "lr/d/1": 0.3}


@pytest.mark.parametrize("options", [{"interval": 0}, {"interval": "5"}, {"window": 0}, {"interval": 2.5}])
def test_a_senseless_interval_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"LoggerHook: {name}={options[name]!r} must be a whole number"):
        LoggerHook(**options)
