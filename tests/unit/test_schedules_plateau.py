"""Schedules that follow a metric, wherever validations are."""

from pathlib import Path
from typing import Any

import pytest

from stratrun.errors import ConfigError
from stratrun.evaluation import BaseMetric
from stratrun.hooks import Hook
from tests.problems import perceptron, points, trained
from tests.rates import StopAt, Used, form, rates


class Told(BaseMetric):
    """Values that are given, one for each evaluation."""

    def __init__(self, values: list[float], name: str = "score") -> None:
        super().__init__()
        self.values, self.name, self.count = values, name, 0

    def process(self, data_batch: Any, outputs: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: Any) -> dict[str, float]:
        self.count += 1
        return {self.name: self.values[self.count - 1]}


PLATEAU = {"type": "ReduceLROnPlateau", "monitor": "score", "patience": 0, "factor": 0.5}
ITERS = {"by_epoch": False, "max_iters": 12}
EVERY_TWO = {**ITERS, "val_interval": 2}


def run(work_dir: Path, values: list[float], schedule: Any = None, **options: Any) -> list[float]:
    validated: dict[str, Any] = {
        "val_dataloader": {"dataset": points(4), "batch_size": 4},
        "val_evaluator": Told(values),
        "train_cfg": EVERY_TWO,
        **options,
    }
    return rates(work_dir, schedule or PLATEAU, **validated)


def pairs(*values: float) -> list[float]:
    return [value for value in values for _ in range(2)]


def test_each_of_several_validations_in_an_epoch_counts(tmp_path: Path) -> None:
    # 7 batches an epoch; validated after 2, 4, ... 12 iterations: the third is no better, and the fifth.
    found = run(tmp_path, [3.0, 2.0, 2.0, 1.0, 4.0, 0.0])
    assert found == pairs(0.5, 0.5, 0.5, 0.25, 0.25, 0.125)


def test_the_mode_says_what_is_better(tmp_path: Path) -> None:
    found = run(tmp_path, [1.0, 2.0, 3.0, 3.0, 2.0, 9.0], {**PLATEAU, "mode": "max"})
    assert found == pairs(0.5, 0.5, 0.5, 0.5, 0.25, 0.125)


def test_validations_by_epochs_count(tmp_path: Path) -> None:
    found = run(tmp_path, [1.0, 1.0, 0.5], train_cfg={"max_epochs": 3, "accumulate": 2})
    assert found == [0.5] * 8 + [0.25] * 4


def test_validations_by_the_clock_count(tmp_path: Path) -> None:
    found = run(tmp_path, [1.0] * 4, train_cfg={**ITERS, "max_iters": 4, "val_minutes": 1e-9})
    assert found == [0.5, 0.5, 0.25, 0.125]


def test_validations_on_request_count(tmp_path: Path) -> None:
    class Ask(Hook):
        def after_train_iter(self, runner: Any) -> None:
            if runner.iter in (2, 4):
                runner.request("validate", agreed=True)

    hook = Used()
    options = {"val_dataloader": {"dataset": points(4), "batch_size": 4}, "val_evaluator": Told([1.0] * 3)}
    loop = {**ITERS, "max_iters": 6}
    trained(perceptron(), **form(tmp_path, PLATEAU, hook, Ask(), train_cfg=loop, **options))
    assert hook.first == [0.5] * 4 + [0.25] * 2


def test_a_plateau_hears_of_no_validation_outside_of_its_window(tmp_path: Path) -> None:
    found = run(tmp_path, [1.0] * 6, {**PLATEAU, "begin": 1, "end": 4})
    # The first that counts is the second one: it sets what the next two are no better than.
    assert found == pairs(0.5, 0.5, 0.5, 0.25, 0.125, 0.125)


def test_a_metric_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"monitor='scores' is no metric of the validation.*'score'"):
        run(tmp_path, [1.0] * 6, {**PLATEAU, "monitor": "scores"})


def test_a_value_that_is_no_number_is_no_better(tmp_path: Path) -> None:
    assert run(tmp_path, [1.0, float("nan"), 0.5, 0.4, 0.3, 0.2])[-1] == 0.25


def test_momentum_of_named_groups_follows_a_metric_too(tmp_path: Path) -> None:
    hook = Used("momentum", "lr")
    options = {"val_dataloader": {"dataset": points(4), "batch_size": 4}, "val_evaluator": Told([1.0] * 6)}
    schedule = {**PLATEAU, "param": "momentum", "groups": [0]}
    trained(perceptron(), **form(tmp_path, schedule, hook, train_cfg=EVERY_TWO, **options))
    assert [values for _, values in sorted(hook.by_update.items())][::2] == [
        [0.9 * factor, 0.5] for factor in (1, 1, 0.5, 0.25, 0.125, 0.0625)
    ]


@pytest.mark.parametrize("at", [1, 2, 3, 6, 8])
def test_a_resumed_plateau_goes_on_as_the_one_that_was_not_stopped(at: int, tmp_path: Path) -> None:
    scores = [3.0, 2.0, 2.0, 1.0, 4.0, 0.0]
    schedule = {**PLATEAU, "patience": 1, "cooldown": 1}
    whole = run(tmp_path / "whole", scores, schedule)
    options: dict[str, Any] = {
        "val_dataloader": {"dataset": points(4), "batch_size": 4},
        "train_cfg": EVERY_TWO,
        "default_hooks": {"checkpoint": {"interval": 1, "by_epoch": False}},
    }
    first, second = Used(), Used()
    trained(
        perceptron(), **form(tmp_path, schedule, first, StopAt(at), val_evaluator=Told(scores), **options)
    )
    # Saved after the iteration, and so before its validation, which is made once more.
    rest = Told(scores[(at - 1) // 2 :])
    trained(perceptron(), **form(tmp_path, schedule, second, val_evaluator=rest, resume=True, **options))
    assert first.first + second.first == whole
