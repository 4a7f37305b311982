"""Averages of weights: by the formula, out of the way of training, and never saved as the model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset

from stratrun import Runner
from stratrun.checkpoint import StoredCheckpoint
from stratrun.errors import ConfigError
from stratrun.hooks import EMAHook, Hook
from stratrun.storage import Folder
from tests.problems import CLASSES, FEATURES, perceptron, points, trained, weights

SAMPLES, BATCH, EPOCHS = 28, 4, 2  # 7 batches an epoch, 3 updates with windows of 3, 3 and 1


class Trace(Hook):
    """Weights at the start, after each update, and as each evaluation sees them."""

    priority = 79

    def __init__(self) -> None:
        self.trained: dict[int, dict[str, Tensor]] = {}
        self.evaluated: list[dict[str, Tensor]] = []

    def before_train(self, runner: Any) -> None:
        self.after_train_iter(runner)

    def after_train_iter(self, runner: Any) -> None:
        self.trained[runner.step] = weights(runner.model)

    def after_train_epoch(self, runner: Any) -> None:
        self.after_train_iter(runner)

    def after_val_iter(self, runner: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.evaluated.append(weights(runner.model))

    def after_test_iter(self, runner: Any, batch_idx: int) -> None:
        self.after_val_iter(runner, batch_idx)

    def after_predict_iter(self, runner: Any, batch_idx: int) -> None:
        self.after_val_iter(runner, batch_idx)


def form(work_dir: Path | str, hooks: list[Any], **options: Any) -> dict[str, Any]:
    return {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(SAMPLES), "global_batch_size": BATCH},
        "train_cfg": {"max_epochs": EPOCHS, "accumulate": 3},
        "val_dataloader": {"dataset": points(8, seed=1), "batch_size": 4},
        "val_evaluator": {"type": "Accuracy"},
        "optimizer": {"type": "AdamW", "lr": 0.05},
        "custom_hooks": hooks,
        "randomness": {"seed": 1},
        "work_dir": str(work_dir),
        **options,
    }


def averaged(trace: Trace, decay: float, begin: int = 0, warmup: bool = False) -> dict[str, Tensor]:
    """The averages after the last update, by the formula."""
    average = {name: value.clone() for name, value in trace.trained[begin].items()}
    for n, step in enumerate(range(begin + 1, max(trace.trained) + 1), start=1):
        d = min(decay, (1 + n) / (10 + n)) if warmup else decay
        for name, value in trace.trained[step].items():
            average[name] = d * average[name] + (1 - d) * value
    return average


def same(found: dict[str, Tensor], truth: dict[str, Tensor]) -> bool:
    return found.keys() == truth.keys() and all(torch.equal(found[name], truth[name]) for name in truth)


@pytest.mark.parametrize(
    ("decay", "begin", "warmup"),
    [(0.9, 0, False), (0.9, 2, False), (0.999, 0, True), (0.25, 1, True), (0, 0, False)],
)
def test_averages_follow_the_formula_once_for_each_update(
    decay: float, begin: int, warmup: bool, tmp_path: Path
) -> None:
    trace, ema = Trace(), EMAHook(decay=decay, begin=begin, warmup=warmup)
    runner = trained(perceptron(), **form(tmp_path, [trace, ema]))
    assert runner.step == 2 * 3 and sorted(trace.trained) == list(range(7))
    state = ema.state_dict()
    torch.testing.assert_close(state["averages"], averaged(trace, decay, begin, warmup), rtol=1e-6, atol=1e-7)
    assert state["updates"] == 6 - begin
    assert decay == 0 or not same(state["averages"], weights(runner.model))


def test_evaluations_see_the_averages_and_training_does_not(tmp_path: Path) -> None:
    plain = trained(perceptron(), **form(tmp_path / "plain", []))
    trace, ema = Trace(), EMAHook(decay=0.9)
    options = {f"{job}_dataloader": {"dataset": points(4), "batch_size": 4} for job in ("test", "predict")}
    runner = trained(
        perceptron(), **form(tmp_path / "ema", [trace, ema], test_evaluator={"type": "Accuracy"}, **options)
    )
    assert same(weights(runner.model), weights(plain.model))
    averages = ema.state_dict()["averages"]
    assert same(trace.evaluated[-1], averages) and not same(trace.evaluated[0], averages)
    for job in (runner.test, runner.predict):
        trace.evaluated.clear()
        job()
        assert same(trace.evaluated[0], averages)
        assert same(weights(runner.model), weights(plain.model))


def test_before_the_averages_begin_the_plain_weights_are_evaluated(tmp_path: Path) -> None:
    trace, ema = Trace(), EMAHook(begin=4)
    trained(perceptron(), **form(tmp_path, [trace, ema]))
    assert same(trace.evaluated[0], trace.trained[3])
    assert same(trace.evaluated[1], ema.state_dict()["averages"])
    assert not same(trace.evaluated[1], trace.trained[6])


class Failing(Hook):
    """Fails in the first validation; with `catch` it asked for that itself, and goes on."""

    def __init__(self, catch: bool) -> None:
        self.catch = catch
        self.failed = False

    def after_train_iter(self, runner: Any) -> None:
        if self.catch and runner.iter == 3:
            with pytest.raises(ZeroDivisionError):
                runner.validate()

    def after_val_iter(self) -> None:
        if not self.failed:
            self.failed = True
            raise ZeroDivisionError


def test_a_validation_that_fails_gives_the_weights_back(tmp_path: Path) -> None:
    plain = trained(perceptron(), **form(tmp_path / "plain", [], train_cfg={"max_epochs": 1}))
    runner = Runner(
        perceptron(),
        **form(tmp_path / "ema", [EMAHook(decay=0.5), Failing(catch=False)], train_cfg={"max_epochs": 1}),
        loggers=(),
        default_hooks={"checkpoint": None},
    )
    with pytest.raises(ZeroDivisionError):
        runner.train()
    assert same(weights(runner.model), weights(plain.model))


def test_a_failure_in_validation_that_someone_catches_does_not_train_the_averages(tmp_path: Path) -> None:
    plain = trained(perceptron(), **form(tmp_path / "plain", []))
    runner = trained(perceptron(), **form(tmp_path / "ema", [EMAHook(decay=0.5), Failing(catch=True)]))
    assert same(weights(runner.model), weights(plain.model))


class Saver(Hook):
    """Saves in the middle of a validation, and right after it, before or behind the averages' hook."""

    def after_val_iter(self, runner: Any, batch_idx: int) -> None:
        if batch_idx == 0 and runner.epoch == 1:
            runner.save_checkpoint()

    def after_val_epoch(self, runner: Any) -> None:
        if runner.epoch == 2:
            runner.save_checkpoint()


def stored(work_dir: Path, step: int) -> dict[str, Any]:
    folder = Folder(str(work_dir)).child("checkpoints").child(f"step-{step:08d}")
    names = ("model", "hooks")
    return {name: StoredCheckpoint(folder).read_part(name) for name in names}


@pytest.mark.parametrize("priority", [50, 95])
def test_checkpoints_made_in_validation_hold_the_plain_weights_and_the_averages(
    priority: int, tmp_path: Path
) -> None:
    trace, ema = Trace(), EMAHook(decay=0.5)
    trained(perceptron(), **form(tmp_path, [trace, ema, {"type": Saver, "priority": priority}]))
    for step, update in ((7, 3), (14, 6)):
        found = stored(tmp_path, step)
        assert same(dict(found["model"]), trace.trained[update])
        averages = found["hooks"]["EMAHook"]["averages"]
        assert same(averages, trace.evaluated[0 if step == 7 else 1])
        assert not same(averages, dict(found["model"]))


def test_the_best_checkpoint_holds_the_plain_weights(tmp_path: Path) -> None:
    trace = Trace()
    best = {"checkpoint": {"interval": None, "save_best": "accuracy", "save_on": None}}
    trained(
        perceptron(),
        **form(tmp_path, [EMAHook(decay=0.5), trace], default_hooks=best, train_cfg={"max_epochs": 1}),
    )
    found = stored(tmp_path, 7)
    assert same(dict(found["model"]), trace.trained[7])
    assert same(found["hooks"]["EMAHook"]["averages"], trace.evaluated[0])


class Odd(nn.Module):
    """Tied and frozen parameters, one of whole numbers, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.norm = nn.BatchNorm1d(FEATURES)
        self.into, self.out_of = nn.Linear(FEATURES, 8), nn.Linear(8, FEATURES, bias=False)
        self.out_of.weight = nn.Parameter(self.into.weight.detach().t().contiguous())
        self.tied = self.into
        self.head = nn.Linear(FEATURES, CLASSES)
        self.head.bias.requires_grad_(False)
        self.levels = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.out_of(self.into(self.norm(inputs)) + self.tied(inputs))
        scores: Tensor = self.head(hidden)
        return scores


def test_tied_and_frozen_parameters_and_buffers_are_all_among_the_averages(tmp_path: Path) -> None:
    trace, ema = Trace(), EMAHook(decay=0.5)
    runner = trained(Odd(), **form(tmp_path, [trace, ema]))
    found, truth = ema.state_dict()["averages"], averaged(trace, 0.5)
    own = weights(runner.model)
    assert found.keys() == own.keys()
    assert torch.equal(found["tied.weight"], found["into.weight"])
    for name in ("head.bias", "levels", "norm.running_mean", "norm.num_batches_tracked"):
        assert torch.equal(found[name], own[name])
    for name in ("tied.weight", "into.weight", "head.weight", "norm.weight"):
        torch.testing.assert_close(found[name], truth[name], rtol=1e-6, atol=1e-7)
    assert same(trace.evaluated[-1], found)


class OwnLoss(nn.Module):
    """A loss with a weight of its own, beside which a model's names are longer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(scores * self.scale, targets)


def test_a_checkpoint_made_in_validation_beside_a_loss_with_weights_holds_the_plain_ones(
    tmp_path: Path,
) -> None:
    trace = Trace()
    trained(perceptron(), **form(tmp_path, [trace, EMAHook(decay=0.5), Saver()], loss=OwnLoss()))
    found = dict(stored(tmp_path, 7)["model"])
    del found["loss.scale"]
    assert same(found, {f"model.{name}": value for name, value in trace.trained[3].items()})


def test_half_parameters_are_averaged_in_float32_and_given_back_exactly(tmp_path: Path) -> None:
    trace, ema = Trace(), EMAHook(decay=0.99)
    plain = trained(perceptron(), **form(tmp_path / "plain", [], precision="bf16-true"))
    runner = trained(perceptron(), **form(tmp_path / "ema", [trace, ema], precision="bf16-true"))
    averages = ema.state_dict()["averages"]
    assert {value.dtype for value in averages.values()} == {torch.float32}
    assert same(weights(runner.model), weights(plain.model))
    assert same(trace.evaluated[-1], {name: value.bfloat16() for name, value in averages.items()})
    trace.trained = {step: {n: v.float() for n, v in one.items()} for step, one in trace.trained.items()}
    torch.testing.assert_close(averages, averaged(trace, 0.99), rtol=1e-6, atol=1e-7)


def test_an_update_that_is_dropped_for_overflow_counts_none(tmp_path: Path) -> None:
    trace, ema = Trace(), EMAHook(decay=0.9)
    precision = {"type": "16-mixed", "init_scale": 2.0**22}
    runner = trained(perceptron(), **form(tmp_path, [trace, ema], precision=precision))
    assert runner.state.skipped and runner.step
    state = ema.state_dict()
    assert state["updates"] == runner.step == 6 - runner.state.skipped
    torch.testing.assert_close(state["averages"], averaged(trace, 0.9), rtol=1e-6, atol=1e-7)


class Unsized(IterableDataset[Any]):
    """Points of which nobody says how many there are."""

    def __iter__(self) -> Iterator[Any]:
        return (points(SAMPLES)[index] for index in range(SAMPLES))


def test_the_update_that_closes_a_window_at_the_end_of_the_data_is_averaged_before_the_validation(
    tmp_path: Path,
) -> None:
    trace, ema = Trace(), EMAHook(decay=0.9)
    data = {"dataset": Unsized(), "batch_size": BATCH}
    options = {"train_dataloader": data, "train_cfg": {"max_epochs": 1, "accumulate": 3}}
    trained(perceptron(), **form(tmp_path, [trace, ema], **options))
    assert ema.state_dict()["updates"] == 3
    torch.testing.assert_close(trace.evaluated[0], averaged(trace, 0.9), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"decay": 1}, "decay=1 must be a number from 0 to below 1"),
        ({"decay": "high"}, "decay='high' must be"),
        ({"begin": -1}, "begin=-1 must be a whole number of updates"),
    ],
)
def test_settings_that_average_nothing_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        EMAHook(**options)
