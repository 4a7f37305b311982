"""When training ends by a result of validation, and that it does so wherever it is resumed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from stratrun import ConfigError, Hook, Runner
from stratrun.hooks import EarlyStoppingHook
from tests.problems import perceptron, points, trained, weights
from tests.ranks import Ranks

EPOCHS = 8
UP_AND_DOWN = (0.1, 0.3, 0.2, 0.31, 0.3, 0.3, 0.5, 0.6)


class Script(Hook):
    """Gives each validation a result that is written down."""

    priority = 10

    def __init__(self, values: Sequence[float], interval: int = 7) -> None:
        self.values = values
        self.interval = interval

    def after_val_epoch(self, runner: Any, metrics: dict[str, float]) -> None:
        metrics["result"] = self.values[runner.iter // self.interval - 1]


class Ends(Hook):
    """Ends training after an iteration, as if from outside."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.state.agree("stop", "killed", urgent=True)


def form(work_dir: Path | str, hooks: Sequence[Any], **options: Any) -> dict[str, Any]:
    return {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(28), "global_batch_size": 4},
        "train_cfg": {"max_epochs": EPOCHS},
        "val_dataloader": {"dataset": points(8, seed=1), "batch_size": 4},
        "val_evaluator": {"type": "Accuracy"},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "custom_hooks": list(hooks),
        "randomness": {"seed": 1},
        "work_dir": str(work_dir),
        **options,
    }


def epochs(work_dir: Path, values: Sequence[float], **settings: Any) -> tuple[int, str]:
    """After how many epochs training ends, and why."""
    hook = EarlyStoppingHook("result", **settings)
    runner = trained(perceptron(), **form(work_dir, [hook, Script(values)]))
    return runner.epoch, runner.state.stop_reason


@pytest.mark.parametrize(
    ("values", "settings", "ends", "told"),
    [
        # The best is 0.1, and 3 after it are not lower.
        (UP_AND_DOWN, {"mode": "min"}, 4, "the last of 3 validations without a better one; the best is 0.1"),
        (UP_AND_DOWN, {"mode": "max", "patience": 2}, 6, "the best is 0.31"),
        (UP_AND_DOWN, {"mode": "max", "patience": 2, "min_delta": 0.02}, 4, "the best is 0.3"),
        (UP_AND_DOWN, {"mode": "max", "patience": 3}, 8, ""),
        (UP_AND_DOWN, {"mode": "min", "patience": 2, "begin": 1}, 5, "the best is 0.2"),
        (UP_AND_DOWN, {"mode": "max", "stopping_threshold": 0.31}, 4, "has come to stopping_threshold=0.31"),
        (UP_AND_DOWN, {"mode": "min", "patience": 9, "stopping_threshold": 0.05}, 8, ""),
        (UP_AND_DOWN, {"mode": "min", "divergence_threshold": 0.3, "patience": 9}, 4, "is worse than"),
        (UP_AND_DOWN, {"mode": "max", "divergence_threshold": 0.1}, 8, ""),
        ((0.1, math.nan, 0.0), {"mode": "max", "patience": 9}, 2, "result=nan is not finite"),
        ((math.inf,) * 8, {"mode": "min", "check_finite": False}, 3, "no result was finite"),
    ],
)
def test_training_ends_when_it_was_told_to(
    values: Sequence[float], settings: dict[str, Any], ends: int, told: str, tmp_path: Path
) -> None:
    found, reason = epochs(tmp_path, values, **settings)
    assert found == ends
    assert told in reason and bool(reason) == bool(told)


def test_validations_by_iterations_count_too(tmp_path: Path) -> None:
    hooks = [EarlyStoppingHook("result", mode="max", patience=2), Script(UP_AND_DOWN, 5)]
    cfg = {"by_epoch": False, "max_iters": 40, "val_interval": 5}
    assert trained(perceptron(), **form(tmp_path, hooks, train_cfg=cfg)).iter == 6 * 5


def test_a_validation_outside_of_training_is_none_of_its_business(tmp_path: Path) -> None:
    hook = EarlyStoppingHook("nothing_of_the_sort", mode="max")
    runner = Runner(perceptron(), **form(tmp_path, [hook]), loggers=())
    runner.val()
    runner.close()
    assert hook.best is None


def test_the_name_tells_what_is_better_where_it_can() -> None:
    assert EarlyStoppingHook("val/accuracy").mode == "max"
    assert EarlyStoppingHook("val_loss").mode == "min"
    assert EarlyStoppingHook("val_loss", mode="max").mode == "max"
    with pytest.raises(ConfigError, match="'shape' does not tell whether more or less"):
        EarlyStoppingHook("shape")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"monitor": ""}, "monitor='' must be the name"),
        ({"mode": "mix"}, "mode='mix' is unknown; did you mean .min."),
        ({"patience": 0}, "patience=0 must be a whole number of validations, at least 1"),
        ({"begin": 1.5}, "begin=1.5 must be"),
        ({"min_delta": -1}, "min_delta=-1 must be"),
        ({"stopping_threshold": "low"}, "stopping_threshold='low' must be a number"),
        ({"divergence_threshold": math.nan}, "divergence_threshold=nan must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        EarlyStoppingHook(**{"monitor": "loss", **settings})


def test_a_result_that_is_not_there_is_an_error_which_names_what_is_near(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="monitor='acuracy' is no result of the validation; did you mean 'acc"
    ):
        trained(perceptron(), **form(tmp_path, [EarlyStoppingHook("acuracy", mode="max")]))


def test_without_a_validation_it_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    given = form(tmp_path, [{"type": "EarlyStoppingHook", "monitor": "accuracy"}])
    given.update(val_dataloader=None, val_evaluator=None, model=lambda: pytest.fail("was built"))
    with pytest.raises(ConfigError, match="monitor='accuracy' is a result of validation, but there is none"):
        Runner(**given).train()


def run(work_dir: str, strategy: str, *hooks: Any, patience: int = 2, **options: Any) -> dict[str, Any]:
    """What a run ends with, of which checkpoints are saved within epochs and at their ends."""
    hook = EarlyStoppingHook("result", mode="max", patience=patience)
    saving = {"interval": 3, "by_epoch": False, "keep_last": None}
    runner = trained(
        perceptron(),
        strategy=strategy,
        **form(
            work_dir, [hook, Script(UP_AND_DOWN), *hooks], default_hooks={"checkpoint": saving}, **options
        ),
    )
    return {
        "at": (runner.epoch, runner.iter, runner.step),
        "state": hook.state_dict(),
        "weights": {name: _whole(value) for name, value in weights(runner.model).items()},
    }


def _whole(value: Any) -> Tensor:
    tensor: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return tensor


def assert_stops_wherever_resumed(strategy: str, work_dir: str) -> None:
    truth = run(f"{work_dir}/whole", strategy)
    assert truth["at"][0] == 6
    for at in (2, 7, 24, 40):
        run(f"{work_dir}/{at}", strategy, Ends(at))
        found = run(f"{work_dir}/{at}", strategy, resume=True)
        assert_same(found, truth)
    # Once more, of the run that was stopped already.
    assert_same(run(f"{work_dir}/whole", strategy, resume=True), truth)
    longer = run(f"{work_dir}/whole", strategy, resume=True, patience=3)
    assert longer["at"][0] == EPOCHS
    assert_same(longer, run(f"{work_dir}/longer", strategy, patience=3))


def assert_same(found: dict[str, Any], truth: dict[str, Any]) -> None:
    assert (found["at"], found["state"]) == (truth["at"], truth["state"])
    assert all(bool((found["weights"][name] == value).all()) for name, value in truth["weights"].items())


def test_a_resumed_run_stops_where_the_uninterrupted_one_does_and_goes_on_when_told_to(
    tmp_path: Path,
) -> None:
    assert_stops_wherever_resumed("single", str(tmp_path))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_resumed_run_of_two_ranks_stops_where_the_uninterrupted_one_does(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(assert_stops_wherever_resumed, strategy, str(tmp_path))
