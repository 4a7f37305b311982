"""Schedules: each of torch's, by epochs and updates, in windows and chains, against loops written by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from torch.utils.data import IterableDataset

from stratrun import Runner
from stratrun.errors import ConfigError
from stratrun.optim import Extent
from tests.problems import QUIET, perceptron, points
from tests.rates import EACH, SAMPLES, form, plain, rates

TORCHS: dict[str, dict[str, Any]] = {
    "LambdaLR": {"lr_lambda": lambda t: 0.9**t},
    "MultiplicativeLR": {"lr_lambda": lambda t: 0.9 + t / 100},
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "MultiStepLR": {"milestones": [1, 2, 7], "gamma": 0.5},
    "ConstantLR": {"factor": 0.25, "total_iters": 2},
    "LinearLR": {"start_factor": 0.25, "total_iters": 3},
    "ExponentialLR": {"gamma": 0.8},
    "PolynomialLR": {"total_iters": 6, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 5, "eta_min": 0.1},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 2},
    "CosineAnnealingWarmRestarts": {"T_0": 2, "T_mult": 2},
    "OneCycleLR": {"max_lr": 1.0, "total_steps": 12},
}


@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize("name", list(TORCHS))
def test_each_scheduler_of_torch_moves_as_in_a_plain_loop(name: str, by_epoch: bool, tmp_path: Path) -> None:
    truth = plain(lambda opt: [(getattr(lr_scheduler, name)(opt, **TORCHS[name]), by_epoch)])
    assert rates(tmp_path, {"type": name, **TORCHS[name], "by_epoch": by_epoch}) == truth
    assert len(set(truth)) > 1


def test_a_list_of_schedules_of_both_units_chains_as_in_a_plain_loop(tmp_path: Path) -> None:
    found = rates(
        tmp_path,
        [
            {"type": "LinearLR", "start_factor": 0.1, "total_iters": 6, "by_epoch": False},
            {"type": "CosineAnnealingLR", "T_max": 3, "eta_min": 0.01},
            {"type": "ExponentialLR", "gamma": 0.9, "by_epoch": False},
        ],
    )
    truth = plain(
        lambda opt: [
            (lr_scheduler.LinearLR(opt, 0.1, total_iters=6), False),
            (lr_scheduler.CosineAnnealingLR(opt, 3, 0.01), True),
            (lr_scheduler.ExponentialLR(opt, 0.9), False),
        ]
    )
    assert found == truth


def test_a_warm_up_of_updates_comes_before_a_cosine_of_updates_given_in_epochs(tmp_path: Path) -> None:
    schedule = [
        {"type": "LinearLR", "start_factor": 0.25, "by_epoch": False, "end": 4},
        {"type": "CosineAnnealingLR", "begin": 1, "convert_to_iter_based": True},
    ]
    warm = [0.5 * (0.25 + 0.75 * t / 3) for t in range(4)]
    cosine = [0.25 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]
    assert rates(tmp_path, schedule) == pytest.approx(warm + cosine, rel=1e-12)


@pytest.mark.parametrize(("begin", "end"), [(0, 4), (3, 7), (5, None), (30, None)])
def test_outside_of_its_window_a_schedule_leaves_the_value_alone(
    begin: int, end: int | None, tmp_path: Path
) -> None:
    schedule = {"type": "ExponentialLR", "gamma": 0.5, "by_epoch": False, "begin": begin, "end": end}
    moves = [min(max(t - begin, 0), (end or 99) - 1 - begin) for t in range(12)]
    assert rates(tmp_path, schedule) == [0.5 * 0.5**n for n in moves]


def test_what_a_scheduler_does_when_it_is_made_waits_for_its_window(tmp_path: Path) -> None:
    schedule = {"type": "ConstantLR", "factor": 0.5, "total_iters": 2, "begin": 5, "by_epoch": False}
    assert rates(tmp_path, schedule) == [0.5] * 5 + [0.25] * 2 + [0.5] * 5
    cycle = {"type": "OneCycleLR", "max_lr": 1.0, "begin": 8, "by_epoch": False}
    found = rates(tmp_path, cycle)
    one = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    made, truth = lr_scheduler.OneCycleLR(one, 1.0, total_steps=4), []
    for _ in range(4):
        truth.append(one.param_groups[0]["lr"])
        one.step()
        made.step()
    assert found == [0.5] * 8 + truth


def test_what_follows_a_window_starts_from_what_that_left(tmp_path: Path) -> None:
    schedule = [
        {"type": "StepLR", "step_size": 1, "gamma": 0.5, "end": 2},
        {"type": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, "begin": 2, "total_iters": 4},
    ]
    found = rates(tmp_path, schedule, train_cfg={"max_epochs": 5, "accumulate": 8})
    assert found == pytest.approx([0.5, 0.25, 0.25, 0.1875, 0.125])


@pytest.mark.parametrize(
    ("epochs", "updates"),
    [
        ({"type": "CosineAnnealingLR", "T_max": 3}, {"T_max": 12}),
        ({"type": "StepLR", "step_size": 1, "gamma": 0.5}, {"step_size": 4}),
        ({"type": "MultiStepLR", "milestones": [1, 2.5], "gamma": 0.5}, {"milestones": [4, 10]}),
        ({"type": "LinearLR", "total_iters": 1.5, "begin": 1}, {"total_iters": 6, "begin": 4}),
        ({"type": "ExponentialLR", "gamma": 0.5, "end": 2}, {"gamma": 0.5**0.25, "end": 8}),
        ({"type": "CosineAnnealingWarmRestarts", "T_0": 1}, {"T_0": 4}),
        ({"type": "PolynomialLR"}, {"total_iters": 20}),
        ({"type": "OneCycleLR", "max_lr": 1.0, "epochs": 3}, {"steps_per_epoch": 4}),
        ({"type": "WarmupCosineLR", "warmup_iters": 1}, {"warmup_iters": 4, "total_iters": 12}),
        (
            {
                "type": "SequentialLR",
                "milestones": [1],
                "schedulers": [{"type": "ConstantLR"}, {"type": "StepLR", "step_size": 1}],
            },
            {
                "milestones": [4],
                "schedulers": [{"type": "ConstantLR", "total_iters": 20}, {"type": "StepLR", "step_size": 4}],
            },
        ),
    ],
    ids=lambda one: one.get("type", "") if isinstance(one, dict) else "",
)
def test_lengths_in_epochs_become_updates(
    epochs: dict[str, Any], updates: dict[str, Any], tmp_path: Path
) -> None:
    found = rates(tmp_path, {**epochs, "convert_to_iter_based": True})
    assert found == rates(tmp_path, {**epochs, **updates, "by_epoch": False})
    assert len(set(found)) > 1


ITERS = {"by_epoch": False, "max_iters": 17, "accumulate": 2}  # 7, 7 and 3 batches: 4, 4 and 2 updates


@pytest.mark.parametrize("loop", [{"max_epochs": 3, "accumulate": 2}, ITERS, {**ITERS, "accumulate": 1}])
@pytest.mark.parametrize("given", [{}, {"T_max": "auto"}])
def test_a_length_that_is_left_out_is_that_of_the_whole_training(
    given: Any, loop: dict[str, Any], tmp_path: Path
) -> None:
    found = rates(tmp_path, {"type": "CosineAnnealingLR", "by_epoch": False, **given}, train_cfg=loop)
    length = {2: 12 if "max_epochs" in loop else 10, 1: 17}[loop["accumulate"]]
    assert found == pytest.approx([0.25 * (1 + math.cos(math.pi * t / length)) for t in range(length)])


def test_a_length_in_epochs_that_is_left_out_is_that_of_the_whole_training(tmp_path: Path) -> None:
    found = rates(tmp_path, {"type": "PolynomialLR", "total_iters": "auto"})
    assert found == pytest.approx([0.5] * EACH + [0.5 * 2 / 3] * EACH + [0.5 / 3] * EACH)


@pytest.mark.parametrize(
    ("batches", "accumulate", "extent"),
    [
        (7, 2, Extent(3, 10, 4)),
        (None, 1, Extent(None, 17, None)),
        (None, 2, Extent()),
        (17, 4, Extent(1, 5, 5)),
        (20, 4, Extent(1, 5, 5)),
    ],
)
def test_the_updates_of_so_many_batches_are_counted_as_loops_make_them(
    batches: int | None, accumulate: int, extent: Extent
) -> None:
    assert Extent.of_iters(17, batches, accumulate) == extent


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from points(SAMPLES)


def test_a_length_that_nobody_knows_is_asked_for(tmp_path: Path) -> None:
    data = {"dataset": Endless(), "batch_size": 4}
    for schedule in (
        {"type": "CosineAnnealingLR", "by_epoch": False},
        {"type": "StepLR", "step_size": 1, "convert_to_iter_based": True},
        {"type": "OneCycleLR", "max_lr": 1.0, "epochs": 2, "by_epoch": False},
    ):
        with pytest.raises(ConfigError, match=r"how long the training is.*by_epoch=False"):
            rates(tmp_path, schedule, train_dataloader=data)
    found = rates(tmp_path, {"type": "CosineAnnealingLR"}, train_dataloader=data)
    assert found == pytest.approx([0.5] * 4 + [0.375] * 4 + [0.125] * 4)


MISTAKES: dict[str, tuple[Any, str]] = {
    "begin": ({"type": "StepLR", "step_size": 1, "begin": -1}, "begin=-1 must be at least 0"),
    "half": ({"type": "StepLR", "step_size": 1, "begin": 0.5}, "begin=0.5 must be a whole number, of epochs"),
    "end": ({"type": "StepLR", "step_size": 1, "begin": 4, "end": 4}, "end=4 be after it"),
    "auto": ({"type": "StepLR", "step_size": 1, "T_max": "all"}, "T_max='all' must be a number, or 'auto'"),
    "both": (
        {"type": "StepLR", "step_size": 1, "by_epoch": False, "convert_to_iter_based": True},
        "turns epochs into updates, but with by_epoch=False",
    ),
    "lambda": (
        {"type": "LambdaLR", "lr_lambda": lambda t: 1.0, "convert_to_iter_based": True},
        "does not know how lr_lambda= counts",
    ),
    "late": ({"type": "CosineAnnealingLR", "begin": 3}, "begin=3 is not before the end of the training"),
    "inner": (
        {
            "type": "SequentialLR",
            "milestones": [1],
            "schedulers": [{"type": "ConstantLR", "by_epoch": False}, {"type": "ConstantLR"}],
        },
        "schedulers.0: by_epoch=False is for the schedule as a whole",
    ),
    "span": ({"type": "StepLR", "step_size": 1.5}, "step_size=1.5 must be a whole number above 0"),
    "no span": ({"type": "CosineAnnealingLR", "T_max": 0}, "T_max=0 must be a whole number above 0"),
    "text": ({"type": "StepLR", "step_size": 1, "gamma": "0.1"}, "gamma='0.1' is a string; write a number"),
    "milestones": (
        {"type": "MultiStepLR", "milestones": "3,4"},
        "milestones='3,4' must be a list of whole numbers, such as [30, 60]",
    ),
    "inner milestones": (
        {
            "type": "SequentialLR",
            "milestones": [1],
            "schedulers": [{"type": "MultiStepLR", "milestones": [0.5]}],
        },
        "schedulers.0: milestones=[0.5] must be a list of whole numbers",
    ),
    "schedulers": (
        {"type": "SequentialLR", "milestones": [1], "schedulers": "ConstantLR"},
        "schedulers='ConstantLR' must be a list of schedules",
    ),
    "no name": ({"type": "StepLR", "step_size": 1, "param": None}, "param=None must be a name"),
    "no group": (
        {"type": "StepLR", "step_size": 1, "groups": []},
        "groups=[] must be the name or the number",
    ),
    "param": ({"type": "StepLR", "step_size": 1, "param": "momentun"}, "did you mean 'momentum'"),
    "group": ({"type": "StepLR", "step_size": 1, "groups": ["head"]}, "no parameter group is called 'head'"),
    "overlap": (
        [
            {"type": "LinearLR", "total_iters": 5, "by_epoch": False},
            {"type": "CosineAnnealingWarmRestarts", "T_0": 4, "by_epoch": False},
        ],
        "param_scheduler.1: CosineAnnealingWarmRestarts works out the value from the initial one",
    ),
    "shape": (
        {"type": "WarmupCosineLR", "total_iters": 4, "warmup_iters": 4},
        "total_iters=4 must be more than warmup_iters=4",
    ),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_told_before_anything_is_trained(name: str, tmp_path: Path) -> None:
    schedule, told = MISTAKES[name]
    runner = Runner(perceptron(), **{**QUIET, **form(tmp_path, schedule)})
    with pytest.raises(ConfigError) as caught:
        runner.train()
    assert told in str(caught.value) and runner.iter == 0


def test_schedules_that_set_a_value_anew_may_come_one_after_the_other(tmp_path: Path) -> None:
    schedule = [
        {"type": "LinearLR", "start_factor": 0.5, "total_iters": 4, "by_epoch": False},
        {"type": "CosineAnnealingWarmRestarts", "T_0": 1, "begin": 1, "convert_to_iter_based": True},
    ]
    restarts = [0.25 * (1 + math.cos(math.pi * t / 4)) for t in range(4)] * 2
    assert rates(tmp_path, schedule) == pytest.approx([0.25, 0.3125, 0.375, 0.4375, *restarts])
    with pytest.raises(ConfigError, match="works out the value from the initial one"):
        rates(tmp_path, [schedule[1], schedule[0]])
