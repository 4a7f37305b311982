"""Buffers of all processes brought together: statistics of their samples, in checkpoints and evaluations."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun import ConfigError, Hook
from stratrun.hooks import EMAHook, SyncBuffersHook
from tests.problems import CLASSES, FEATURES, points, trained
from tests.ranks import Ranks

SAMPLES, BATCH, EPOCHS = 24, 4, 3
PER_EPOCH = SAMPLES // BATCH
EVERY = ["model", "optimizer", "scheduler", "precision", "counters", "hooks", "data", "rng"]


class Stop(Hook):
    """Ends training after an iteration, as if from outside."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.state.agree("stop", "killed", urgent=True)


class Trace(Hook):
    """The running means and those that evaluations see."""

    priority = 60

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.seen: list[Tensor] = []
        self.ranks: list[list[Tensor]] = []

    def after_train_epoch(self, runner: Any) -> None:
        mean = runner.model[1].running_mean.clone()
        self.ranks.append(runner.engine.gauges.of_all(mean))

    def after_train_iter(self, runner: Any) -> None:
        self.trained.append(runner.model[1].running_mean.clone())

    def after_train(self, runner: Any) -> None:
        self.of_first = runner.engine.gauges.of_all(self.trained)[0]

    def after_val_iter(self, runner: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.seen.append(runner.model[1].running_mean.clone())


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))


def run(work_dir: str, strategy: str, *hooks: Hook, **options: Any) -> dict[str, Tensor]:
    form: dict[str, Any] = {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(SAMPLES), "global_batch_size": BATCH},
        "train_cfg": {"max_epochs": EPOCHS},
        "val_dataloader": {"dataset": points(8, seed=1), "batch_size": 4},
        "val_evaluator": "Accuracy",
        "optimizer": {"type": "SGD", "lr": 0.1},
        "default_hooks": {"checkpoint": {"keep_last": None}},
        "randomness": {"seed": 1},
        **options,
    }
    runner = trained(net(), strategy=strategy, custom_hooks=list(hooks), work_dir=work_dir, **form)
    state: dict[str, Any] = runner.model.state_dict()
    found = {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in state.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def assert_unified(strategy: str, work_dir: str) -> None:
    for how in ("mean", "first"):
        trace = Trace()
        truth = run(f"{work_dir}/{how}", strategy, SyncBuffersHook(how), trace)
        for before, seen in zip(trace.ranks, trace.seen, strict=True):
            assert not torch.equal(before[0], before[1])
            expected = torch.stack(before).double().mean(0) if how == "mean" else before[0].double()
            torch.testing.assert_close(seen.double(), expected, rtol=1e-6, atol=1e-7)
        for at in (3, 6, 9):
            run(f"{work_dir}/{how}-{at}", strategy, SyncBuffersHook(how), Stop(at))
            again = run(f"{work_dir}/{how}-{at}", strategy, SyncBuffersHook(how), resume=True)
            torch.testing.assert_close(again, truth, rtol=0, atol=0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_evaluations_and_resumed_runs_have_the_buffers_of_all_ranks(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(assert_unified, strategy, str(tmp_path))


def assert_resumed_between_validation_and_the_end_of_an_epoch(work_dir: str) -> None:
    # In the last iteration of an epoch, whose checkpoint comes ahead of both.
    cfg = {"by_epoch": False, "max_iters": 3 * PER_EPOCH, "val_interval": PER_EPOCH}
    save = {"checkpoint": {"interval": 1, "by_epoch": False, "keep_last": None}}
    truth = run(f"{work_dir}/whole", "ddp", SyncBuffersHook(), train_cfg=cfg, default_hooks=save)
    for at in (PER_EPOCH, 2 * PER_EPOCH):
        given = {"path": f"{work_dir}/whole/checkpoints/step-{at:08d}", "parts": EVERY}
        again = run(f"{work_dir}/{at}", "ddp", SyncBuffersHook(), train_cfg=cfg, load_from=given)
        torch.testing.assert_close(again, truth, rtol=0, atol=0)


def test_a_validation_ahead_of_the_end_of_an_epoch_is_no_matter_to_a_resumed_run(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(assert_resumed_between_validation_and_the_end_of_an_epoch, str(tmp_path))


def test_in_one_process_nothing_is_changed(tmp_path: Path) -> None:
    bare = run(str(tmp_path / "bare"), "single")
    torch.testing.assert_close(run(str(tmp_path / "sync"), "single", SyncBuffersHook()), bare, rtol=0, atol=0)


def assert_averaged(strategy: str, work_dir: str) -> None:
    trace = Trace()
    truth = run(f"{work_dir}/whole", strategy, EMAHook(decay=0.5, buffers="average"), trace)
    # Each process averages its own; seen are the averages of the first.
    average = torch.zeros(8)
    for one in trace.of_first:
        average = torch.lerp(average, one, 0.5)
    torch.testing.assert_close(trace.seen[-1], average, rtol=1e-6, atol=1e-7)
    for at in (4, 6):
        run(f"{work_dir}/{at}", strategy, EMAHook(decay=0.5, buffers="average"), Stop(at))
        hooks = [EMAHook(decay=0.5, buffers="average"), again := Trace()]
        resumed = run(f"{work_dir}/{at}", strategy, *hooks, resume=True)
        assert torch.equal(again.seen[-1], trace.seen[-1])
        torch.testing.assert_close(resumed, truth, rtol=0, atol=0)


def test_averages_of_buffers_are_by_the_formula(tmp_path: Path) -> None:
    assert_averaged("single", str(tmp_path))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_averages_of_buffers_are_those_of_the_first_rank_on_all(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(assert_averaged, strategy, str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"how": "main"}, "how='main' is unknown; did you mean 'mean'"),
        ({"interval": 0}, "interval=0 must be a whole number of iterations"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        SyncBuffersHook(**settings)
