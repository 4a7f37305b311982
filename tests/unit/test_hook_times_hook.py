"""Microseconds of each hook at each point, by a clock that is told."""

from pathlib import Path
from typing import Any

import pytest

from stratrun import Hook, Logger, Runner
from stratrun.hooks import HookTimesHook, ProfilerHook
from stratrun.hooks import hook_times as hook_times_module
from tests.problems import perceptron, points


class Hears(Logger):
    def __init__(self) -> None:
        self.told: list[str] = []

    def say(self, text: str) -> None:
        self.told.append(text)

    def log(self, record: Any) -> None: ...


class Takes(Hook):
    """Takes 3 ms of each iteration, and validates after some, which takes other hooks' time."""

    priority = 60

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def after_train_iter(self, runner: Any) -> None:
        self.clock[0] += 0.003
        if runner.iter == 2:
            runner.validate()


class TakesInVal(Hook):
    def __init__(self, clock: list[float]) -> None:
        self.clock = clock
        self.logged: list[float] = []

    def after_val_iter(self) -> None:
        self.clock[0] += 0.5

    def before_log(self, values: dict[str, Any]) -> None:
        self.logged.append(values["hook_us"])


def test_each_hook_is_told_by_itself_and_nothing_watches_before_or_after(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = [0.0]
    monkeypatch.setattr(hook_times_module, "perf_counter", lambda: clock[0])
    watch, other, heard = HookTimesHook(), TakesInVal(clock), Hears()
    runner = Runner(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(16), "batch_size": 2},
        train_cfg={"max_iters": 4, "val_interval": 100},
        val_dataloader={"dataset": points(4), "batch_size": 2},
        val_evaluator="Accuracy",
        optimizer={"type": "SGD", "lr": 0.1},
        default_hooks={"logger": {"type": "LoggerHook", "interval": 2}},
        custom_hooks=[Takes(clock), other, ProfilerHook(wait=0, warmup=1, active=1, folder=tmp_path), watch],
        loggers=[heard],
        work_dir=tmp_path,
    )
    assert runner.hooks.around is None
    runner.train()
    runner.close()
    assert runner.hooks.around is None
    takes = watch.times["Takes", "after_train_iter"]
    assert (takes.calls, takes.seconds, takes.longest) == (4, pytest.approx(0.012), pytest.approx(0.003))
    inner = watch.times["TakesInVal", "after_val_iter"]
    # In the middle by request, and at the end.
    assert (inner.calls, inner.seconds) == (4, pytest.approx(2.0))
    assert watch.times["LoggerHook", "after_train_iter"].calls == 4
    # Per iteration: 3 ms, and in the first window two batches of validation.
    assert other.logged == pytest.approx([(0.006 + 1.0) / 2 * 1e6, 3000.0])
    lines = watch.report().splitlines()
    assert lines[1].split() == ["TakesInVal.after_val_iter", "4", "500000.0", "500000.0", "2000.00"]
    assert lines[2].split() == ["Takes.after_train_iter", "4", "3000.0", "3000.0", "12.00"]
    assert [text.splitlines()[1:3] for text in heard.told if text.startswith("hooks")] == [lines[1:3]]
