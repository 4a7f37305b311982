"""Learning rates that are scaled by the batch: by what, when, and what a resume makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from stratrun.data import samples_of_batch
from stratrun.errors import ConfigError
from stratrun.hooks import Hook
from stratrun.optim import optimizer as optimizers
from stratrun.optim.scaling import UpdateSize
from tests.problems import perceptron, points, trained
from tests.ranks import Ranks

SGD: dict[str, Any] = {"type": "SGD", "lr": 0.25}
BASE: dict[str, Any] = {"base_batch_size": 16}


class Stop(Hook):
    def __init__(self, at: int | None) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.request("stop", agreed=True)


def run(work_dir: str, stop: int | None = None, **options: Any) -> dict[str, Any]:
    """Learning rates as first built and at the end, what the run says, and its weights."""
    given: dict[str, Any] = {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(32), "batch_size": 4, "shuffle": False},
        "train_cfg": {"max_epochs": 2},
        "optimizer": {**SGD, "scale_lr": BASE},
        "custom_hooks": [Stop(stop)],
        "work_dir": work_dir,
        "loggers": ["console"],
        **options,
    }
    runner = trained(perceptron(), **given)
    settings = runner.engine.settings["optimizers"]
    return {
        "built": [group["lr"] for group in settings["optimizer"]["groups"]],
        "rates": [group["lr"] for group in runner.engine.optimizers["optimizer"].param_groups],
        "told": [line for line in runner.reasons if "scale_lr" in line],
        "weights": [p.detach().clone() for p in runner.model.parameters()],
    }


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("sqrt", 2.0)])
def test_the_rate_is_that_of_a_run_with_the_product_and_is_told(
    rule: str, factor: float, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"train_cfg": {"max_epochs": 2, "accumulate": 2}}
    scaled = {**SGD, "scale_lr": {"base_batch_size": 2, "rule": rule}}
    found = run(str(tmp_path / "scaled"), optimizer=scaled, **options)
    plain = run(str(tmp_path / "plain"), optimizer={**SGD, "lr": 0.25 * factor}, **options)
    assert found["rates"] == plain["rates"] == [0.25 * factor]
    torch.testing.assert_close(found["weights"], plain["weights"], rtol=0, atol=0)
    assert found["told"] == [
        f"optimizer: learning rates times {factor:g}, as an update is of 8 samples (4 x 2 accumulated) and "
        f"they are for 2 (scale_lr, {rule})"
    ]


@pytest.mark.parametrize(
    ("strategy", "batch"), [("ddp", {"batch_size": 4}), ("fsdp", {"global_batch_size": 8})], ids=str
)
def test_the_ranks_count(strategy: str, batch: dict[str, int], two_ranks: Ranks, tmp_path: Path) -> None:
    data = {"dataset": points(32), "shuffle": False, **batch}
    for found in two_ranks(run, str(tmp_path), strategy=strategy, train_dataloader=data):
        assert found["rates"] == [0.125]
        assert "times 0.5, as an update is of 8 samples (4 x 2 ranks)" in found["told"][0]


def test_ranks_that_share_a_batch_count_once(two_ranks: Ranks, tmp_path: Path) -> None:
    strategy = {"type": "tensor_parallel", "size": 2, "plan": {"0": "column", "2": "row"}}
    for found in two_ranks(run, str(tmp_path), strategy=strategy):
        assert found["rates"] == [0.0625]
        assert "an update is of 4 samples (4)" in found["told"][0]


def test_rates_of_groups_are_scaled_with_that_of_all_and_a_default_too() -> None:
    rules = {"bias_lr_mult": 2.0, "rules": {"2": {"lr": 1.0}}}
    spec = {"type": "AdamW", "paramwise": rules, "scale_lr": {"base_batch_size": 64, "rule": "sqrt"}}
    (made,) = optimizers.build(spec, perceptron(), UpdateSize(4, 2, 2)).values()
    assert [group["lr"] for group in made.param_groups] == [0.0005, 0.001, 0.5]
    assert made.defaults["lr"] == 0.0005


def test_a_schedule_of_accumulation_scales_by_how_it_begins(tmp_path: Path) -> None:
    found = run(str(tmp_path), train_cfg={"max_epochs": 2, "accumulate": [(0, 2), (1, 4)]})
    assert found["rates"] == [0.125]


def test_a_resumed_run_does_not_scale_again(tmp_path: Path) -> None:
    schedule = {"type": "StepLR", "step_size": 1, "gamma": 0.5, "by_epoch": False}
    options: dict[str, Any] = {"param_scheduler": schedule}
    saved: dict[str, Any] = {**options, "default_hooks": {}}
    truth = run(str(tmp_path / "whole"), **options)
    run(str(tmp_path / "stopped"), stop=5, **saved)
    found = run(str(tmp_path / "stopped"), resume=True, **saved)
    assert found["rates"] == truth["rates"] == [0.0625 * 0.5**16]
    torch.testing.assert_close(found["weights"], truth["weights"], rtol=0, atol=0)


def test_on_another_number_of_ranks_rates_go_on_and_the_run_says_for_what_they_were(
    two_ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: dict[str, Any] = {"default_hooks": {}, "stop": 3}
    two_ranks(run, str(tmp_path), **saved)
    for stop in (6, None):
        capsys.readouterr()
        found = run(str(tmp_path), resume=True, **{**saved, "stop": stop})
        assert (found["built"], found["rates"]) == ([0.125], [0.125])
        said = capsys.readouterr().out
        assert (
            "optimizer: scale_lr: learning rates go on as scaled for updates of 8 samples, which have 4 from "
            "here on" in said
        )
        assert "optimizer: lr 0.0625 is given, 0.125 goes on from the checkpoint" in said


def test_with_a_global_batch_size_another_number_of_ranks_changes_nothing(
    two_ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"dataset": points(32), "shuffle": False, "global_batch_size": 8}
    saved: dict[str, Any] = {"default_hooks": {}, "train_dataloader": data}
    two_ranks(run, str(tmp_path), stop=3, **saved)
    found = run(str(tmp_path), resume=True, **saved)
    assert found["rates"] == [0.125]
    said = capsys.readouterr().out
    assert "go on as scaled" not in said and "goes on from" not in said


LOADERS: list[tuple[Any, int | None]] = [
    ({"dataset": points(8), "batch_size": 6}, 6),
    ({"dataset": points(8), "global_batch_size": 6}, 3),
    ({"dataset": points(8)}, 32),
    ({"dataset": points(8), "batch_size": None}, None),
    ({"dataset": points(8), "batch_sampler": BatchSampler(SequentialSampler(range(8)), 2, False)}, None),
    (points(8), 32),
    (DataLoader(points(8), batch_size=5), 5),
    (DataLoader(points(8), batch_sampler=BatchSampler(SequentialSampler(range(8)), 2, False)), None),
    ([points(8).tensors], None),
    ({"loaders": {"a": {"dataset": points(8), "batch_size": 2}, "b": points(8)}}, None),
    (lambda: iter([points(8).tensors]), None),
]


@pytest.mark.parametrize(("spec", "expected"), LOADERS)
def test_the_size_of_a_batch_is_known_where_batches_are_made_here(spec: Any, expected: int | None) -> None:
    assert samples_of_batch(spec, 2) == expected


def test_batches_that_come_ready_need_a_word_on_their_size(tmp_path: Path) -> None:
    data = [points(8).tensors]
    with pytest.raises(ConfigError, match=r"scale_lr: how many samples .* is not known .* batch_size="):
        run(str(tmp_path), train_dataloader=data)
    found = run(
        str(tmp_path), train_dataloader=data, optimizer={**SGD, "scale_lr": {**BASE, "batch_size": 8}}
    )
    assert found["rates"] == [0.125]


MISTAKES: list[tuple[Any, str]] = [
    (256, "scale_lr=256 must say what batch the learning rate is for"),
    ({}, r"scale_lr=\{\} must say"),
    ({"base_batch_size": 0}, "base_batch_size=0 must be a whole number above 0"),
    ({**BASE, "batch_size": "8"}, "batch_size='8' must be a whole number"),
    ({**BASE, "rule": "squart"}, "rule='squart' is unknown; did you mean 'sqrt'"),
    ({**BASE, "base_batch": 3}, "takes no 'base_batch'; did you mean 'base_batch_size'"),
]


@pytest.mark.parametrize(("given", "text"), MISTAKES, ids=[text for _, text in MISTAKES])
def test_what_makes_no_sense_is_refused(given: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        optimizers.check({**SGD, "scale_lr": given}, UpdateSize(4))


def test_words_of_others_are_told_what_they_are_here() -> None:
    with pytest.raises(ConfigError, match=r"auto_scale_lr is not known here; use scale_lr=dict\("):
        optimizers.check({**SGD, "auto_scale_lr": {}})


class Rateless(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None: ...  # type: ignore[override]


def test_an_optimizer_without_a_rate_has_none_to_scale() -> None:
    with pytest.raises(ConfigError, match="Rateless has no lr to scale"):
        optimizers.build({"type": Rateless, "scale_lr": BASE}, perceptron(), UpdateSize(4))
