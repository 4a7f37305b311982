"""Default hooks, replaced, set and switched off by name."""

from pathlib import Path
from typing import Any

import pytest

from stratrun import Runner
from stratrun.errors import ConfigError
from stratrun.hooks import Hook
from tests.end_to_end.test_dispatch_order import EPOCHS, form
from tests.problems import perceptron


class OwnTimer(Hook):
    pass


def hooks_of(default_hooks: Any, work_dir: str) -> list[str]:
    # Without the hook that is there for a setting, and goes by another name.
    settings = {"env_cfg": {"gc": "python"}}
    runner = Runner(perceptron(), **form(work_dir, default_hooks=default_hooks, **settings))
    return sorted(type(hook).__name__ for hook in runner.hooks)


def test_default_hooks_are_replaced_set_and_switched_off_by_name(tmp_path: Any) -> None:
    whole = ["CheckpointHook", "IterTimerHook", "LoggerHook", "ParamSchedulerHook"]
    assert hooks_of(None, str(tmp_path)) == whole
    assert hooks_of({"timer": None, "checkpoint": False}, str(tmp_path)) == whole[2:]
    assert hooks_of({"timer": {"type": OwnTimer}, "logger": OwnTimer()}, str(tmp_path)) == [
        "CheckpointHook",
        "OwnTimer",
        "OwnTimer",
        "ParamSchedulerHook",
    ]
    runner = Runner(perceptron(), **form(str(tmp_path), default_hooks={"logger": {"interval": 7}}))
    intervals = [hook.interval for hook in runner.hooks if type(hook).__name__ == "LoggerHook"]  # type: ignore[attr-defined]
    assert intervals == [7]


def test_a_default_hook_that_does_not_exist_is_refused_with_the_nearest_name(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="no default hook is called 'loger'; did you mean 'logger'"):
        Runner(perceptron(), **form(str(tmp_path), default_hooks={"loger": None})).test()


def test_without_the_scheduler_hook_rates_stay_and_with_it_they_move(tmp_path: Any) -> None:
    schedule = {"type": "ExponentialLR", "gamma": 0.5}
    rates = []
    for number, hooks in enumerate(({"checkpoint": None}, {"checkpoint": None, "scheduler": None})):
        options = form(f"{tmp_path}/{number}", param_scheduler=schedule, default_hooks=hooks)
        runner = Runner(perceptron(), **options)
        runner.train()
        rates.append(runner.engine.optimizers["optimizer"].param_groups[0]["lr"])
    assert rates == [0.1 * 0.5**EPOCHS, 0.1]


def test_a_checkpoint_saved_after_training_is_there_when_the_call_returns(tmp_path: Path) -> None:
    runner = Runner(perceptron(), **form(str(tmp_path), default_hooks={"checkpoint": None}))
    runner.train()
    url = runner.save_checkpoint()
    assert (Path(url) / "COMMITTED").exists()
    runner.close()
