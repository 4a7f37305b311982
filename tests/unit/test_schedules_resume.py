"""Schedules over a resume, a longer training, a rollback and a part of a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from stratrun import Runner
from stratrun.hooks import Hook, ParamSchedulerHook
from stratrun.optim import Schedule
from tests.problems import QUIET, perceptron, trained
from tests.ranks import Ranks
from tests.rates import StopAt, Used, form, rates

KEPT: dict[str, Any] = {"checkpoint": {"interval": 1, "by_epoch": False, "keep_last": None}}
SEVERAL = [
    {"type": "LinearLR", "start_factor": 0.25, "by_epoch": False, "end": 3},
    {"type": "WarmupCosineLR", "begin": 1, "convert_to_iter_based": True},
    {"type": "PolynomialLR", "param": "weight_decay", "by_epoch": False, "begin": 2, "end": 9},
    {"type": "StepLR", "param": "momentum", "step_size": 1, "gamma": 0.9},
    {"type": "CosineAnnealingLR", "param": "eps", "begin": 2},
]
ADAMW = {"type": "AdamW", "lr": 0.1, "weight_decay": 0.4}


def ended(work_dir: str, *hooks: Hook, **options: Any) -> dict[str, Any]:
    """All that a run ends with, and what its updates were made with."""
    hook = Used("lr", "weight_decay", "betas", "eps")
    given = {"optimizer": ADAMW, "default_hooks": KEPT, **options}
    runner = Runner(perceptron(), **{**QUIET, **form(work_dir, SEVERAL, hook, *hooks, **given)})
    runner.train()
    state = runner.engine.saved.shared_state()["model"]
    found = {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in state.items()}
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in runner.engine.optimizers["optimizer"].param_groups
    ]
    result = {
        "weights": {name: one.clone() for name, one in found.items()},
        "schedules": [schedule.state_dict() for schedule in runner.schedules],
        "groups": groups,
        "used": hook.by_update,
    }
    runner.close()
    return result


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def assert_resumes(work_dir: str, at: tuple[int, ...], **options: Any) -> None:
    truth = ended(f"{work_dir}/whole", **options)
    assert len(truth["used"]) == 12 and len({str(values) for values in truth["used"].values()}) > 10
    for stop in at:
        first = ended(f"{work_dir}/{stop}", StopAt(stop), **options)
        second = ended(f"{work_dir}/{stop}", resume=True, **options)
        assert same(second["weights"], truth["weights"])
        assert {**first["used"], **second["used"]} == truth["used"]
        assert second["schedules"] == truth["schedules"] and second["groups"] == truth["groups"]


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_bit(tmp_path: Path) -> None:
    assert_resumes(str(tmp_path), (2, 3, 7, 8, 14))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", {"type": "ddp", "shard_optimizer": True}], ids=str)
def test_a_run_of_two_ranks_that_is_stopped_goes_on_to_the_bit(
    strategy: Any, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(assert_resumes, str(tmp_path), (3, 8), strategy=strategy)


class Late(Hook):
    """Saves after an iteration, before schedules have moved."""

    priority = 10

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.save_checkpoint()

    def after_train_epoch(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.save_checkpoint()


def test_a_schedule_that_was_saved_before_it_moved_is_not_late(tmp_path: Path) -> None:
    truth = ended(str(tmp_path / "whole"))
    for at in (2, 7, 8):
        off = {"default_hooks": {"checkpoint": None}}
        ended(str(tmp_path / str(at)), Late(at), StopAt(at), **off)
        found = ended(str(tmp_path / str(at)), resume=True, **off)
        assert found["used"].items() <= truth["used"].items()
        assert same(found["weights"], truth["weights"])


COSINE = {"type": "CosineAnnealingLR", "by_epoch": False, "eta_min": 0.125}
SAVED = {"default_hooks": KEPT}
LONGER = {"train_cfg": {"max_epochs": 5, "accumulate": 2}}


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (COSINE, 0.125),
        ({"type": "WarmupPolynomialLR", "by_epoch": False, "eta_min": 0.25}, 0.25),
        ({"type": "OneCycleLR", "max_lr": 1.0, "total_steps": 12, "by_epoch": False}, 4e-6),
    ],
    ids=["cosine", "polynomial", "one cycle"],
)
def test_a_longer_training_keeps_the_last_value_of_a_schedule_of_the_whole_one_before(
    schedule: Any, last: float, tmp_path: Path
) -> None:
    first = rates(tmp_path, schedule, **SAVED)
    found = rates(tmp_path, schedule, **SAVED, **LONGER, resume=True)
    assert len(first) == 12 and found == pytest.approx([last] * 8)


def test_a_length_that_was_given_goes_on_as_torch_has_it(tmp_path: Path) -> None:
    schedule = {**COSINE, "T_max": 12}
    rates(tmp_path, schedule, **SAVED)
    found = rates(tmp_path, schedule, **SAVED, **LONGER, resume=True)
    assert found == sorted(found) and found[-1] > 0.3


def test_counts_and_schedules_can_be_loaded_without_each_other(tmp_path: Path) -> None:
    schedule = {"type": "ExponentialLR", "gamma": 0.5, "by_epoch": False}
    rates(tmp_path / "first", schedule, **SAVED)
    path = f"{tmp_path}/first/checkpoints/step-00000007"  # four updates
    weights = {"path": path, "parts": ["model", "optimizer", "scheduler"]}
    found = rates(tmp_path / "anew", schedule, load_from=weights)
    assert found == [0.5 * 0.5 ** (4 + t) for t in range(12)]
    counted = {"path": path, "parts": ["model", "optimizer", "counters", "data", "rng"]}
    found = rates(tmp_path / "counted", schedule, load_from=counted)
    assert found == [0.5 * 0.5 ** (4 + t) for t in range(8)]
    both = {"path": path, "parts": ["model", "optimizer", "scheduler", "counters", "data"]}
    assert rates(tmp_path / "both", schedule, load_from=both) == found


def test_the_state_of_earlier_versions_which_had_no_windows_is_taken() -> None:
    def made() -> Schedule:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        return Schedule(torch.optim.lr_scheduler.StepLR(optimizer, 3), by_epoch=False)

    old, new = made(), made()
    for _ in range(4):
        old.step()
    state = dict(old.scheduler.state_dict())
    new.load_state_dict(state)
    assert new.position == 4 and new.state_dict() == old.state_dict()


def test_a_schedule_by_epochs_that_was_put_back_over_the_end_of_one_catches_up(tmp_path: Path) -> None:
    class Back(Hook):
        """What a rollback does: schedules and the hook that moves them as they were, in a later epoch."""

        priority = 5

        def __init__(self) -> None:
            self.before: Any = None

        def after_train_iter(self, runner: Any) -> None:
            (mover,) = (hook for hook in runner.hooks if isinstance(hook, ParamSchedulerHook))
            if runner.iter == 6:
                self.before = (runner.schedules[0].state_dict(), mover.state_dict(), mover.goes_on)
            if runner.iter == 9:
                state, counts, goes_on = self.before
                runner.schedules[0].load_state_dict(state)
                kept = {key: mover.state_dict()[key] for key in goes_on}
                mover.load_state_dict({**counts, "step": mover.state_dict()["step"], **kept})
                for group in runner.engine.optimizers["optimizer"].param_groups:
                    group["lr"] = 0.5

    schedule = {"type": "ExponentialLR", "gamma": 0.5}
    hook = Used()
    trained(perceptron(), **form(tmp_path, schedule, hook, Back()))
    assert hook.first == [0.5] * 4 + [0.25] * 4 + [0.125] * 4
