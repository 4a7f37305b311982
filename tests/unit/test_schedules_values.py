"""Schedules of momentum, weight decay and single groups, shapes of our own, and what a run makes of them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import lr_scheduler

from stratrun import Runner
from stratrun.optim import scheduler as schedules
from stratrun.registry import PARAM_SCHEDULERS
from tests.problems import QUIET, perceptron
from tests.ranks import Ranks
from tests.rates import form, plain_weights, rates, used

HALVES = {"type": "ExponentialLR", "gamma": 0.5, "by_epoch": False}
ADAMW = {"type": "AdamW", "lr": 0.1, "weight_decay": 0.4, "betas": (0.8, 0.99)}
POWERS = [0.5**t for t in range(12)]


def test_momentum_moves_and_the_learning_rate_does_not(tmp_path: Path) -> None:
    found = used(tmp_path, {**HALVES, "param": "momentum"}, "momentum", "lr").by_update
    assert list(found.values()) == [[0.9 * power, 0.5] for power in POWERS]


def test_momentum_of_adam_is_its_first_beta(tmp_path: Path) -> None:
    found = used(tmp_path, {**HALVES, "param": "momentum"}, "betas", optimizer=ADAMW).by_update
    assert list(found.values()) == [[(0.8 * power, 0.99)] for power in POWERS]


def test_values_of_one_group_move_by_schedules_of_their_own(tmp_path: Path) -> None:
    schedule = [
        {"type": "StepLR", "step_size": 6, "gamma": 0.1, "by_epoch": False},
        {**HALVES, "param": "weight_decay"},
        {
            "type": "LinearLR",
            "param": "momentum",
            "by_epoch": False,
            "start_factor": 0.5,
            "begin": 6,
            "end": 9,
        },
    ]
    found = used(tmp_path, schedule, "lr", "weight_decay", "betas", optimizer=ADAMW).by_update
    momentum = [*[0.8] * 6, 0.4, 0.6, *[0.8] * 4]
    for t in range(12):
        lr, decay, betas = found[t]
        assert (lr, decay) == (pytest.approx(0.1 if t < 6 else 0.01), 0.4 * POWERS[t])
        assert betas == (pytest.approx(momentum[t]), 0.99)


def grouped(parameters: Any) -> torch.optim.Optimizer:
    first, *rest = parameters
    groups = [{"params": [first], "name": "stem"}, {"params": rest, "name": "head", "lr": 0.25}]
    return torch.optim.SGD(groups, lr=0.5)


def test_only_the_named_groups_move(tmp_path: Path) -> None:
    found = used(tmp_path, {**HALVES, "groups": ["head"]}, optimizer=grouped).by_update
    assert list(found.values()) == [[0.5, 0.25 * power] for power in POWERS]


def test_a_cycle_moves_momentum_against_the_rate_but_not_when_it_moves_something_else(tmp_path: Path) -> None:
    cycle = {"type": "OneCycleLR", "max_lr": 1.0, "by_epoch": False}
    found = used(tmp_path, cycle, "momentum", "lr").by_update
    assert found[0][0] == 0.95 and found[3][0] < 0.9 and len({lr for _, lr in found.values()}) == 12
    other = {**cycle, "param": "weight_decay"}
    found = used(tmp_path, other, "momentum", "lr", "weight_decay").by_update
    assert {tuple(values[:2]) for values in found.values()} == {(0.9, 0.5)}
    assert found[0][2] == pytest.approx(1 / 25) and len({values[2] for values in found.values()}) == 12


SHAPES: dict[str, tuple[dict[str, Any], Any]] = {
    "WarmupCosineLR": (
        {"warmup_iters": 4, "eta_min": 0.1},
        lambda t: 0.1 + 0.4 * 0.5 * (1 + math.cos(math.pi * (t - 4) / 8)),
    ),
    "WarmupPolynomialLR": (
        {"warmup_iters": 4, "power": 2.0, "eta_min": 0.1},
        lambda t: 0.1 + 0.4 * (1 - (t - 4) / 8) ** 2,
    ),
    "WarmupStableDecayLR": (
        {"warmup_iters": 4, "decay_iters": 4},
        lambda t: 0.5 if t <= 8 else 0.5 * (12 - t) / 4,
    ),
    "InverseSqrtLR": ({"warmup_iters": 4}, lambda t: 0.5 * math.sqrt(4) / math.sqrt(t)),
    "WarmupConstantLR": ({"warmup_iters": 4}, lambda t: 0.5),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_shape_is_its_formula_after_a_linear_warm_up(name: str, tmp_path: Path) -> None:
    options, formula = SHAPES[name]
    warm = [0.5 * (t + 1) / 5 for t in range(4)]
    found = rates(tmp_path, {"type": name, **options, "by_epoch": False})
    assert found == pytest.approx([*warm, *(formula(t) for t in range(4, 12))], rel=1e-12)


@pytest.mark.parametrize(
    ("decay", "half"), [("linear", 0.5), ("cosine", 0.5), ("1-sqrt", 1 - math.sqrt(0.5))]
)
def test_a_stable_rate_decays_as_asked_and_stays_at_its_floor(decay: str, half: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    spec = {
        "type": "WarmupStableDecayLR",
        "total_iters": 10,
        "decay_iters": 4,
        "decay": decay,
        "eta_min": 0.2,
    }
    made = PARAM_SCHEDULERS.build(spec, optimizer=optimizer)
    found = []
    for _ in range(14):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    assert found[:7] == [1.0] * 7
    assert found[8] == pytest.approx(0.2 + 0.8 * half)
    assert found[10:] == pytest.approx([0.2] * 4)


def test_shapes_of_ours_may_be_parts_of_a_sequence_of_torch(tmp_path: Path) -> None:
    parts = [
        {"type": "ConstantLR", "factor": 0.5, "total_iters": 99},
        {"type": "WarmupConstantLR", "warmup_iters": 3},
    ]
    found = rates(
        tmp_path, {"type": "SequentialLR", "milestones": [4], "schedulers": parts, "by_epoch": False}
    )
    assert found == pytest.approx([0.25] * 4 + [0.125, 0.25, 0.375] + [0.5] * 5)


def test_a_scheduler_of_the_user_gets_its_optimizer_and_its_own_lengths(tmp_path: Path) -> None:
    class Slower(lr_scheduler.LRScheduler):
        def __init__(self, optimizer: Any, total_iters: int) -> None:
            self.total_iters = total_iters
            super().__init__(optimizer)

        def get_lr(self) -> list[Any]:
            return [base / (1 + self.last_epoch / self.total_iters) for base in self.base_lrs]

    found = rates(tmp_path, {"type": Slower, "by_epoch": False})
    assert found == [0.5 / (1 + t / 12) for t in range(12)]


EVERY = [
    {"type": "WarmupCosineLR", "warmup_iters": 3, "by_epoch": False},
    {**HALVES, "param": "weight_decay"},
    {"type": "LinearLR", "param": "momentum", "start_factor": 0.5, "end": 3},
]


def weights_of(work_dir: str, **options: Any) -> dict[str, Tensor]:
    runner = Runner(perceptron(), **{**QUIET, **form(work_dir, EVERY, optimizer=ADAMW, **options)})
    runner.train()
    state = runner.engine.saved.shared_state()["model"]
    found = {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in state.items()}
    runner.close()
    return {name: one.clone() for name, one in found.items()}


def by_hand(optimizer: torch.optim.Optimizer, update: int) -> None:
    (group,) = optimizer.param_groups
    warm = (update + 1) / 4
    group["lr"] = 0.1 * (warm if update < 3 else (1 + math.cos(math.pi * (update - 3) / 9)) / 2)
    group["weight_decay"] = 0.4 * 0.5**update
    group["betas"] = (0.8 * (0.5 + 0.25 * min(update // 4, 2)), 0.99)


def truth() -> dict[str, Tensor]:
    options = {key: value for key, value in ADAMW.items() if key != "type"}
    return plain_weights(lambda parameters: torch.optim.AdamW(parameters, **options), by_hand)


def test_weights_are_those_of_a_plain_loop_that_sets_every_value_by_hand(tmp_path: Path) -> None:
    torch.testing.assert_close(weights_of(str(tmp_path)), truth(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", {"type": "ddp", "shard_optimizer": True}], ids=str)
def test_weights_of_two_ranks_are_those_of_a_plain_loop_that_sets_every_value_by_hand(
    strategy: Any, two_ranks: Ranks, tmp_path: Path
) -> None:
    for found in two_ranks(weights_of, str(tmp_path), strategy=strategy):
        torch.testing.assert_close(found, truth(), rtol=1e-4, atol=1e-5)


def test_groups_that_came_with_a_loaded_state_are_moved(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    (schedule,) = schedules.build({**HALVES, "param": "momentum"}, {"optimizer": optimizer})
    schedule.step()
    optimizer.load_state_dict(optimizer.state_dict())
    schedule.step()
    assert optimizer.param_groups[0]["momentum"] == 0.9 / 4
