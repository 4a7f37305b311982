"""Functions as hooks."""

from functools import partial
from typing import Any

import pytest

from stratrun import ConfigError
from stratrun.hooks import LambdaHook
from tests.problems import perceptron, points, trained


def test_functions_get_what_they_name_at_their_points() -> None:
    seen: list[Any] = []
    hook = LambdaHook(
        before_train=lambda: seen.append("begin"),
        after_train_iter=lambda runner, batch_idx: seen.append((runner.iter, batch_idx)),
        after_train_epoch=partial(lambda mark, runner: seen.append((mark, runner.epoch)), "epoch"),
        after_invented=lambda **details: seen.append(details["answer"]),
    )
    runner = trained(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(6), "batch_size": 3},
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.1},
        custom_hooks=[hook],
    )
    runner.call_hooks("after_invented", answer=42)
    assert seen == ["begin", (1, 0), (2, 1), ("epoch", 1), 42]


def test_a_config_takes_it_by_name() -> None:
    seen: list[int] = []
    trained(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(6), "batch_size": 3},
        train_cfg={"max_epochs": 2},
        optimizer={"type": "SGD", "lr": 0.1},
        custom_hooks=[{"type": "LambdaHook", "after_train_epoch": lambda runner: seen.append(runner.epoch)}],
    )
    assert seen == [1, 2]


@pytest.mark.parametrize(
    ("points_given", "said"),
    [
        ({}, "does nothing"),
        ({"after_train_iter": 3}, "no function; give one that takes what it needs of runner, batch_idx"),
        ({"train_iter": print}, "'train_iter' is no point; did you mean"),
        ({"state_dict": print}, "'state_dict' is no point"),
        ({"on_train_epoch_end": print}, "is called 'after_train_epoch' here"),
    ],
)
def test_what_is_no_function_at_a_point_is_refused(points_given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LambdaHook(**points_given)
