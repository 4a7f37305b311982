"""Parts of a checkpoint in another run: as they were saved, renamed, and as far as they fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stratrun.errors import CheckpointError, ConfigError
from tests.end_to_end.loading import (
    ALL,
    EPOCHS,
    Counting,
    Idle,
    StopAfter,
    Words,
    load,
    network,
    runner,
    same,
    train,
)
from tests.problems import CLASSES, points, weights


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that was stopped within its second epoch."""
    folder = tmp_path_factory.mktemp("saved")
    train(folder, custom_hooks=[Counting(), StopAfter(8)])
    return str(folder / "checkpoints" / "step-00000008")


# Whole and in part -------------------------------------------------------------------------------------


def test_a_new_run_with_all_parts_of_another_is_its_continuation(saved: str, tmp_path: Path) -> None:
    truth = train(tmp_path / "whole")
    words = Words()
    rest = train(
        tmp_path / "rest",
        network(seed=9),
        load_from={"path": saved, "parts": ALL},
        loggers=[words],
        randomness={"seed": 77},
    )
    assert same(weights(rest.model), weights(truth.model))
    assert (rest.iter, rest.seed) == (truth.iter, truth.seed)
    assert [hook.count for hook in rest.hooks if isinstance(hook, Counting)] == [18]
    assert (Path(rest.work_dir) / "checkpoints" / "step-00000018").exists()
    assert words.said[0] == (
        f"loaded from {saved}: model: 4 loaded; the optimizer: 4 loaded; scheduler: 1 loaded; precision; "
        "counters: epoch 1, iteration 8; hooks: Counting, ParamSchedulerHook, LoggerHook, CheckpointHook; "
        "data: epoch 1 after 8 samples; rng"
    )


def test_by_default_the_weights_are_loaded_and_all_else_is_new(saved: str, tmp_path: Path) -> None:
    run = load(tmp_path, network(seed=9), load_from=saved)
    trained = load(tmp_path / "too", network(seed=8), load_from={"path": saved})
    assert same(weights(run.model), weights(trained.model))
    assert not same(weights(run.model), weights(network()))
    assert (run.iter, run.epoch) == (0, 0)
    assert run.engine.saved.shared_state()["optimizers"]["optimizer"]["state"] == {}
    report = run.load_report
    assert report is not None
    assert (report.url, report.parts, report.missing, report.unexpected) == (saved, ("model",), [], [])
    assert report.loaded == list(weights(run.model))


def test_moments_come_with_learning_rates_unless_the_run_has_a_schedule_of_its_own(
    saved: str, tmp_path: Path
) -> None:
    wanted = {"path": saved, "parts": ["model", "optimizer"]}
    for number, (schedule, rate) in enumerate(
        [(None, 0.05 * 0.5), ({"type": "ExponentialLR", "gamma": 0.5}, 0.75)]
    ):
        options: dict[str, Any] = {"optimizer": {"type": "Adam", "lr": 0.75}, "param_scheduler": schedule}
        run = load(tmp_path / str(number), load_from=wanted, **options)
        state = run.engine.saved.shared_state()["optimizers"]["optimizer"]
        assert [group["lr"] for group in state["param_groups"]] == [rate]
        assert {name: int(one["step"]) for name, one in state["state"].items()} == dict.fromkeys(
            weights(run.model), 8
        )


def test_the_loss_scale_comes_with_the_part_called_precision(tmp_path: Path) -> None:
    scaled = {"type": "16-mixed", "init_scale": 2.0, "growth_interval": 5}
    first = train(tmp_path / "first", precision=scaled)
    for parts, scale in ((["model", "precision"], 2.0 * 2**3), (["model"], 4.0)):
        wanted = {"path": first.last_checkpoint, "parts": parts}
        run = load(
            tmp_path / str(len(parts)), load_from=wanted, precision={"type": "16-mixed", "init_scale": 4.0}
        )
        assert run.engine.saved.shared_state()["precision"]["scale"] == scale


def test_a_job_without_training_takes_the_weights_and_a_later_training_the_rest(
    saved: str, tmp_path: Path
) -> None:
    loader = {"dataset": points(8), "batch_size": 4}
    run = runner(
        tmp_path,
        network(seed=9),
        load_from={"path": saved, "parts": ["model", "optimizer", "counters"]},
        predict_dataloader=loader,
        train_cfg={"type": Idle, "max_epochs": EPOCHS},
    )
    run.predict()
    assert run.load_report is not None
    assert (run.load_report.parts, run.iter) == (("model",), 0)
    with torch.no_grad():
        next(run.model.parameters()).zero_()
    run.train()
    assert run.load_report.parts == ("model", "optimizer", "counters")
    assert run.iter == 8
    assert not next(run.model.parameters()).any()  # not loaded again


# What does not fit ---------------------------------------------------------------------------------------


RENAME = {r"^body\.(.*)": r"encoder.\1"}


def test_weights_and_moments_find_their_place_under_new_names(saved: str, tmp_path: Path) -> None:
    wanted = {"path": saved, "parts": ["model", "optimizer"], "rename": RENAME}
    run = load(tmp_path, network(seed=9, body="encoder"), load_from=wanted)
    plain = load(tmp_path / "plain", load_from=saved)
    assert weights(run.model)["encoder.weight"].equal(weights(plain.model)["body.weight"])
    state = run.engine.saved.shared_state()["optimizers"]["optimizer"]["state"]
    assert state.keys() == {"encoder.weight", "encoder.bias", "head.weight", "head.bias"}
    assert run.load_report is not None
    assert run.load_report.renamed == {"body.weight": "encoder.weight", "body.bias": "encoder.bias"}


def test_what_fits_is_loaded_and_the_rest_reported_when_not_strict(saved: str, tmp_path: Path) -> None:
    model = network(seed=9, body="encoder", drop="norm")
    model.head = nn.Linear(8, CLASSES + 2)
    model.add_module("extra", nn.Linear(CLASSES + 2, CLASSES))
    before, words = weights(model), Words()
    wanted = {"path": saved, "parts": ["model", "optimizer"], "strict": False}
    run = load(
        tmp_path, model, load_from={**wanted, "rename": {"^body.(weight)": r"encoder.\1"}}, loggers=[words]
    )
    after, report = weights(run.model), run.load_report
    assert report is not None
    assert report.loaded == ["encoder.weight"]
    assert report.missing == ["encoder.bias", "extra.weight", "extra.bias"]
    assert report.unexpected == ["body.bias"]
    assert report.skipped == {"head.weight": ((3, 8), (5, 8)), "head.bias": ((3,), (5,))}
    assert [name for name in before if not before[name].equal(after[name])] == ["encoder.weight"]
    assert list(run.engine.saved.shared_state()["optimizers"]["optimizer"]["state"]) == ["encoder.weight"]
    assert "model: 1 loaded, 3 missing, 1 unexpected, 2 skipped, 1 renamed" in words.said[0]
    assert "'head.weight' (3, 8), here (5, 8)" in words.said[0]
    train(tmp_path / "on", run.model)  # fresh moments are made when they are needed


def test_when_one_part_does_not_fit_nothing_is_changed(saved: str, tmp_path: Path) -> None:
    model = network(seed=9)
    before = weights(model)
    wanted = {"path": saved, "parts": ["model", "optimizer"]}
    with pytest.raises(CheckpointError, match=r"does not fit the optimizer: SGD is of another class"):
        load(tmp_path, model, load_from=wanted, optimizer={"type": "SGD", "lr": 0.1, "momentum": 0.9})
    assert same(weights(model), before)


@pytest.mark.parametrize(
    ("changes", "wanted", "words"),
    [
        ({"custom_hooks": []}, {"parts": ["hooks"]}, ["state of 'Counting', which this run has not"]),
        ({"custom_hooks": [Counting(), Counting()]}, {"parts": ["hooks"]}, ["no state of 'Counting#2'"]),
        (
            {"param_scheduler": None},
            {"parts": ["optimizer", "scheduler"]},
            ["it has 1 learning rate schedules, and this run 0", "param_scheduler"],
        ),
        (
            {"optimizer": {"mine": {"type": "Adam", "lr": 0.1, "params": ["body", "head"]}}},
            {"parts": ["model", "optimizer"]},
            ["optimizer 'mine'", "known: optimizer"],
        ),
        ({}, {"rename": {"backbone": "x"}}, ["'backbone' matches none of the 4 names", "'body.weight'"]),
        ({}, {"rename": {"body|head": "x"}}, ["makes 'x.weight' of both 'body.weight' and 'head.weight'"]),
        ({}, {"weights": "ema"}, ["no moving averages", "type='EMAHook'", "weights='model'"]),
    ],
    ids=["a hook less", "a hook more", "schedule", "name", "no match", "twice", "no averages"],
)
def test_what_does_not_fit_is_an_error_that_says_what(
    changes: dict[str, Any], wanted: dict[str, Any], words: list[str], saved: str, tmp_path: Path
) -> None:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load(tmp_path, load_from={"path": saved, **wanted}, **changes)
    assert [word for word in ["load_from", *words] if word not in str(caught.value)] == []


def test_hooks_and_schedules_that_do_not_fit_are_left_when_not_strict(saved: str, tmp_path: Path) -> None:
    parts = ["model", "optimizer", "scheduler", "hooks"]
    wanted = {"path": saved, "parts": parts, "strict": False}
    run = load(tmp_path, load_from=wanted, custom_hooks=[], param_scheduler=None)
    assert run.load_report is not None
    assert "scheduler: left as it is" in str(run.load_report)
    assert "'Counting', which this run has not" in str(run.load_report)
