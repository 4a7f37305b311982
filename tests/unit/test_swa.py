"""Stochastic weight averaging against a loop written out, and its statistics against torch's own pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, SequentialLR
from torch.optim.swa_utils import SWALR, update_bn

from stratrun import ConfigError, Hook, Runner
from stratrun.checkpoint.export import export_weights
from stratrun.checkpoint.weights import read_weights
from stratrun.hooks import SWAHook
from tests.problems import CLASSES, FEATURES, points, trained, weights
from tests.ranks import Ranks

SAMPLES, BATCH, EPOCHS = 24, 4, 5
STATISTICS = ("1.running_mean", "1.running_var", "1.num_batches_tracked")


def net() -> nn.Sequential:
    """A classifier with batch normalization."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


class Trace(Hook):
    """What validations see, and the weights that epochs end with."""

    priority = 79

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.trained: list[dict[str, Tensor]] = []

    def after_train_epoch(self, runner: Any) -> None:
        self.trained.append(whole(runner.model))

    def after_val_iter(self, runner: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.seen.append(whole(runner.model))


class Stop(Hook):
    """Ends training after an iteration, for a reason of its own or from outside."""

    def __init__(self, at: int, urgent: bool = True) -> None:
        self.at = at
        self.urgent = urgent

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.state.agree("stop", "for a test", urgent=self.urgent)


def whole(model: Any) -> dict[str, Tensor]:
    state = model if isinstance(model, dict) else weights(model)
    return {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in state.items()}


def form(work_dir: Path | str, hooks: list[Any], **options: Any) -> dict[str, Any]:
    return {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(SAMPLES), "global_batch_size": BATCH, "shuffle": False},
        "train_cfg": {"max_epochs": EPOCHS},
        "val_dataloader": {"dataset": points(8, seed=1), "batch_size": 4},
        "val_evaluator": {"type": "Accuracy"},
        "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9},
        "custom_hooks": hooks,
        "randomness": {"seed": 1},
        "work_dir": str(work_dir),
        **options,
    }


def plain(begin: int, interval: int) -> dict[str, Tensor]:
    """The averages and their statistics by a loop written out."""
    model, taken = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    inputs, targets = points(SAMPLES).tensors
    for epoch in range(1, EPOCHS + 1):
        for first in range(0, SAMPLES, BATCH):
            part = slice(first, first + BATCH)
            optimizer.zero_grad()
            cross_entropy(model(inputs[part]), targets[part]).backward()
            optimizer.step()
        if epoch >= begin and (epoch - begin) % interval == 0:
            taken.append(weights(model))
    return averaged(taken, shares=1)


def averaged(taken: list[dict[str, Tensor]], shares: int) -> dict[str, Tensor]:
    """The mean of weights, with statistics by torch's own pass over batches of which each has its share."""
    model = net()
    means = {name: torch.stack([one[name] for one in taken]).double().mean(0) for name in taken[0]}
    model.load_state_dict({name: value.to(taken[0][name].dtype) for name, value in means.items()})
    inputs = points(SAMPLES).tensors[0]
    batches = inputs.split(BATCH)
    update_bn([batch[share::shares] for batch in batches for share in range(shares)], model)
    return weights(model)


def assert_same(found: dict[str, Tensor], truth: dict[str, Tensor], **tolerance: float) -> None:
    torch.testing.assert_close(found, truth, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


@pytest.mark.parametrize(("begin", "interval"), [(1, 1), (2, 2), (3, 1), (5, 1)])
def test_the_averages_and_their_statistics_are_those_of_a_plain_loop(
    begin: int, interval: int, tmp_path: Path
) -> None:
    trace, swa = Trace(), SWAHook(begin, interval=interval)
    bare = trained(net(), **form(tmp_path / "bare", []))
    runner = trained(net(), **form(tmp_path / "swa", [swa, trace]))
    truth = plain(begin, interval)
    assert_same(swa.state_dict()["averages"], truth)
    # The last validation had them too, and training went on without.
    assert_same(trace.seen[-1], truth)
    assert_same(weights(runner.model), weights(bare.model), rtol=0, atol=0)


def test_by_iterations_weights_are_taken_after_updates_and_the_last_validation_has_statistics(
    tmp_path: Path,
) -> None:
    trace, swa = Trace(), SWAHook(12, interval=6, by_epoch=False)
    cfg = {"by_epoch": False, "max_iters": SAMPLES // BATCH * EPOCHS, "val_interval": 10}
    trained(net(), **form(tmp_path, [swa, trace], train_cfg=cfg))
    truth = plain(2, 1)
    assert_same(swa.state_dict()["averages"], truth)
    assert_same(trace.seen[-1], truth)
    assert not any(torch.equal(trace.seen[1][name], truth[name]) for name in STATISTICS)


@pytest.mark.parametrize("update_bn", ["epoch", None])
def test_statistics_come_when_they_are_asked_for_and_draw_nothing_that_training_would(
    update_bn: str | None, tmp_path: Path
) -> None:
    trace, swa = Trace(), SWAHook(2, update_bn=update_bn)
    bare = trained(net().append(nn.Dropout(0.3)), **form(tmp_path / "bare", [own := Trace()]))
    runner = trained(net().append(nn.Dropout(0.3)), **form(tmp_path / "swa", [swa, trace]))
    assert_same(weights(runner.model), weights(bare.model), rtol=0, atol=0)
    for epoch in range(2, EPOCHS + 1):
        seen, plain_ones = trace.seen[epoch - 1], own.seen[epoch - 1]
        assert torch.equal(seen["1.running_mean"], plain_ones["1.running_mean"]) == (update_bn is None)


class Rates(Hook):
    """The learning rate of each epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def before_train_epoch(self, runner: Any) -> None:
        self.seen.append(runner.engine.optimizers["optimizer"].param_groups[0]["lr"])


def test_the_learning_rate_goes_to_that_of_averaging_by_torch_s_own_schedule(tmp_path: Path) -> None:
    steps = [
        {"type": "CosineAnnealingLR", "T_max": 10},
        {"type": "SWALR", "swa_lr": 0.05, "anneal_epochs": 2},
    ]
    schedule = {"type": "SequentialLR", "schedulers": steps, "milestones": [2], "by_epoch": True}
    found = []
    for resume in (False, True):
        hooks = [SWAHook(3), rates := Rates(), *([] if resume else [Stop(14)])]
        saving = {"checkpoint": {"interval": None}}
        options = {"param_scheduler": schedule, "default_hooks": saving, "resume": resume}
        trained(net(), **form(tmp_path, hooks, **options))
        found.append(rates.seen)
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    first, then = CosineAnnealingLR(optimizer, 10), SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
    truth_of, truth = SequentialLR(optimizer, [first, then], [2]), []
    for _ in range(EPOCHS):
        truth.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        truth_of.step()
    assert found == [truth[:3], truth[2:]]
    assert truth[-1] == 0.05 and truth[1] > truth[3]


def test_a_run_that_is_stopped_early_has_statistics_for_what_it_averaged(tmp_path: Path) -> None:
    swa = SWAHook(1)
    runner = trained(net(), **form(tmp_path, [swa, Stop(15, urgent=False)]))
    assert runner.iter == 15
    averages = swa.state_dict()["averages"]
    assert not torch.equal(averages["1.running_mean"], weights(runner.model)["1.running_mean"])
    assert averages["1.num_batches_tracked"] == SAMPLES // BATCH


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"begin": 0}, "begin=0 must be a whole number of epochs"),
        ({"begin": 1, "interval": 0.5, "by_epoch": False}, "interval=0.5 must be a whole number of updates"),
        ({"begin": 1, "update_bn": "ends"}, "update_bn='ends' is unknown; give None, or did you mean 'end'"),
        ({"begin": 1, "bn_batches": 0}, "bn_batches=0 must be"),
    ],
)
def test_settings_that_average_nothing_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        SWAHook(**settings)


def test_averages_that_would_begin_after_the_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"begin=9 is after the end of training \(max_epochs=5\)"):
        trained(net(), **form(tmp_path, [SWAHook(9)]))


def ended(work_dir: str, strategy: str, *hooks: Hook, **options: Any) -> tuple[Any, ...]:
    """The averages, the weights, the metrics, and the weights after each epoch."""
    swa, trace = SWAHook(2), Trace()
    given = form(work_dir, [swa, trace, *hooks], default_hooks={"checkpoint": {"keep_last": None}}, **options)
    runner = trained(net(), strategy=strategy, **given)
    averages = whole(dict(swa.state_dict()["averages"]))
    return averages, whole(runner.model), runner.metrics, trace.trained


def assert_resumes(strategy: str, work_dir: str, shares: int) -> None:
    *truth, after_epochs = ended(f"{work_dir}/whole", strategy)
    assert_same(truth[0], averaged(after_epochs[1:], shares))
    for at in (5, 12, 17, 26):
        ended(f"{work_dir}/{at}", strategy, Stop(at))
        found = ended(f"{work_dir}/{at}", strategy, resume=True)
        torch.testing.assert_close(list(found[:3]), truth, rtol=0, atol=0)
    # Averages that are loaded evaluate as they did in training.
    origin = {"path": f"{work_dir}/whole", "weights": "swa"}
    evaluated = Runner(net(), strategy=strategy, loggers=(), load_from=origin, **form(f"{work_dir}/val", []))
    assert evaluated.val() == truth[2]
    assert_same(whole(evaluated.model), truth[0], rtol=0, atol=0)
    evaluated.close()


def test_a_resumed_run_has_the_averages_of_the_uninterrupted_one_and_so_has_what_is_exported(
    tmp_path: Path,
) -> None:
    assert_resumes("single", str(tmp_path), 1)
    export_weights(tmp_path / "whole", tmp_path / "swa.safetensors", weights="swa")
    assert_same(read_weights(tmp_path / "swa.safetensors"), plain(2, 1))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_resumed_run_of_two_ranks_has_the_averages_and_statistics_of_all_samples(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(assert_resumes, strategy, str(tmp_path), 2)
