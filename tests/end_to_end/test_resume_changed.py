"""What a resumed run says of what is other than it was when the checkpoint was saved."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stratrun import Hook, Runner
from stratrun.errors import CheckpointNotFoundError
from tests.problems import perceptron, points

SAMPLES = 24


class StopAt(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.iteration:
            runner.request("stop", agreed=True)


class Counts(Hook):
    """Keeps what `max_iters` was at each iteration."""

    def __init__(self) -> None:
        self.seen: list[int | None] = []

    def before_train(self, runner: Any) -> None:
        self.seen.append(runner.max_iters)

    def after_train_iter(self, runner: Any) -> None:
        self.seen.append(runner.max_iters)


def run(work_dir: Path, *hooks: Any, **options: Any) -> Runner:
    form: dict[str, Any] = {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(SAMPLES), "batch_size": 4},
        "train_cfg": {"max_epochs": 2},
        "optimizer": {"type": "AdamW", "lr": 0.01},
        "work_dir": work_dir,
        "resume": "auto",
        "loggers": ["console"],
        "custom_hooks": list(hooks),
    }
    runner = Runner(perceptron(), **{**form, **options})
    runner.train()
    runner.close()
    return runner


def test_max_iters_is_what_is_done_and_what_is_left_in_batches_of_another_size(tmp_path: Path) -> None:
    run(tmp_path, StopAt(3), loggers=[])  # 12 of 24 samples
    counts = Counts()
    smaller = {"dataset": points(SAMPLES), "batch_size": 3}
    runner = run(tmp_path, counts, loggers=[], train_dataloader=smaller)
    assert runner.iter == 3 + 4 + 8
    assert set(counts.seen) == {runner.iter}


def test_max_iters_of_a_run_that_has_ended_is_what_was_done(tmp_path: Path) -> None:
    run(tmp_path, loggers=[])
    counts = Counts()
    other = {"dataset": points(SAMPLES), "batch_size": 5}
    run(tmp_path, counts, loggers=[], train_dataloader=other)
    assert counts.seen == [12]


def test_max_iters_counts_whole_epochs_at_first(tmp_path: Path) -> None:
    counts = Counts()
    run(tmp_path, counts, loggers=[])
    assert counts.seen == [12] * 13


@pytest.mark.parametrize("given", ["Auto", "nowhere", "x.safetensors"])
def test_only_who_asks_for_the_newest_is_told_of_auto_that_starts_anew(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFoundError) as caught:
        run(tmp_path / "run", resume=given)
    assert "starts anew" not in str(caught.value)


class Memory(Hook):
    """Has state."""

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 1}


SCHEDULES: dict[str, Any] = {
    "none": None,
    "step": {"type": "StepLR", "step_size": 1, "gamma": 0.5},
    "warm": [
        {"type": "LinearLR", "start_factor": 0.1, "total_iters": 4, "by_epoch": False},
        {"type": "CosineAnnealingWarmRestarts", "T_0": 2, "T_mult": 2, "by_epoch": False, "begin": 9},
    ],
    "cycle": {"type": "OneCycleLR", "max_lr": 0.1, "total_steps": 30, "by_epoch": False},
    "plateau": {"type": "ReduceLROnPlateau", "monitor": "accuracy", "patience": 0, "threshold": 1.0},
    "sequence": {
        "by_epoch": False,
        "type": "SequentialLR",
        "milestones": [3],
        "schedulers": [
            {"type": "ConstantLR", "total_iters": 3},
            {"type": "MultiStepLR", "milestones": [4, 4]},
        ],
    },
}
VALIDATED = {
    "val_dataloader": {"dataset": points(8), "batch_size": 8},
    "val_evaluator": {"type": "Accuracy"},
}


class Moves(Hook):
    """Changes an option by itself."""

    def after_train_iter(self, runner: Any) -> None:
        for group in runner.engine.optimizers["optimizer"].param_groups:
            group["weight_decay"] *= 0.9


def told(output: str) -> list[str]:
    """What follows on where the run was resumed from, up to the end of what it says of its start."""
    lines = iter(output.splitlines())
    assert any("resumed from" in line for line in lines), output
    found = []
    for line in lines:
        if not line.startswith("  ") or line.startswith("   "):
            break
        found.append(line.strip())
    # What any run says of its start.
    return [line for line in found if not line.startswith("checkpoints: ")]


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_an_unchanged_run_that_is_resumed_says_nothing_of_changes(
    schedule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"param_scheduler": SCHEDULES[schedule], **VALIDATED}
    hooks = (Moves, Memory)
    for stop in (3, 7, 9):
        run(tmp_path, StopAt(stop), *(hook() for hook in hooks), **options)
        output = capsys.readouterr().out
        assert stop == 3 or told(output) == []
    run(tmp_path, StopAt(99), *(hook() for hook in hooks), **options)
    assert told(capsys.readouterr().out) == []


HINT = "from the checkpoint (load_from=dict(path=..., parts=['model', ...]) starts with what is given)"


def test_options_that_are_given_and_do_not_go_on_are_named_at_every_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {"param_scheduler": SCHEDULES["warm"]}
    run(tmp_path, StopAt(3), **first)
    assert "is given" not in capsys.readouterr().out
    given = {
        "optimizer": {"type": "AdamW", "lr": 0.5, "weight_decay": 0.3, "betas": (0.8, 0.9)},
        "param_scheduler": [{**SCHEDULES["warm"][0], "total_iters": 9}, SCHEDULES["warm"][1]],
    }
    for stop in (5, 7):
        runner = run(tmp_path, StopAt(stop), **given)
        assert told(capsys.readouterr().out) == [
            "optimizer: betas [0.8, 0.9] is given, [0.9, 0.999] goes on; lr 0.5 is given, 0.01 goes on; "
            f"weight_decay 0.3 is given, 0.01 goes on {HINT}",
            f"param_scheduler.0: total_iters 9 is given, 4 goes on {HINT}",
        ]
    (group,) = runner.engine.optimizers["optimizer"].param_groups
    assert (group["initial_lr"], group["weight_decay"], group["betas"]) == (0.01, 0.01, (0.9, 0.999))
    run(tmp_path, **first)
    assert told(capsys.readouterr().out) == []


def test_a_group_with_another_option_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def groups(second: float) -> Any:
        def build(parameters: Any) -> torch.optim.Optimizer:
            first, *rest = parameters
            return torch.optim.SGD([{"params": [first]}, {"params": rest, "lr": second}], lr=0.1)

        return build

    run(tmp_path, StopAt(3), optimizer=groups(0.2))
    run(tmp_path, StopAt(5), optimizer=groups(0.2))
    assert told(capsys.readouterr().out) == []
    run(tmp_path, optimizer=groups(0.4))
    assert told(capsys.readouterr().out) == [f"optimizer: lr of group 1 0.4 is given, 0.2 goes on {HINT}"]


def test_another_kind_of_schedule_or_optimizer_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, StopAt(3), param_scheduler=SCHEDULES["step"], optimizer={"type": "Adam", "lr": 0.01})
    capsys.readouterr()
    run(
        tmp_path,
        param_scheduler={"type": "ExponentialLR", "gamma": 0.9},
        optimizer={"type": "AdamW", "lr": 0.01},
    )
    lines = told(capsys.readouterr().out)
    assert "param_scheduler: was StepLR, is ExponentialLR from here on" in lines
    assert "optimizer: was Adam, is AdamW from here on" in lines


def test_changed_precision_and_accumulation_are_named_with_what_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, StopAt(3), train_cfg={"max_epochs": 2, "accumulate": 2})
    capsys.readouterr()
    run(tmp_path, StopAt(5), train_cfg={"max_epochs": 2, "accumulate": 4}, precision="bf16-mixed")
    assert told(capsys.readouterr().out) == [
        "precision: was 32-true, is bf16-mixed from here on",
        "accumulate: was 2, is 4 from here on",
    ]
    run(tmp_path, train_cfg={"max_epochs": 2, "accumulate": 4}, precision="bf16-mixed")
    assert told(capsys.readouterr().out) == []


def test_a_changed_schedule_of_accumulation_is_named_and_the_same_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, StopAt(3), train_cfg={"max_epochs": 2, "accumulate": [(0, 1), (1, 2)]})
    capsys.readouterr()
    run(tmp_path, StopAt(5), train_cfg={"max_epochs": 2, "accumulate": {0: 1, 1: 2}})
    assert told(capsys.readouterr().out) == []
    run(tmp_path, train_cfg={"max_epochs": 2, "accumulate": 1})
    assert told(capsys.readouterr().out) == ["accumulate: was [[0, 1], [1, 2]], is 1 from here on"]


def test_a_group_with_another_rule_is_named_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def groups(mult: float) -> dict[str, Any]:
        return {"type": "AdamW", "lr": 0.5, "paramwise": {"bias_lr_mult": mult}}

    run(tmp_path, StopAt(3), optimizer=groups(2.0))
    capsys.readouterr()
    runner = run(tmp_path, optimizer=groups(4.0))
    assert told(capsys.readouterr().out) == [f"optimizer: lr of group 1 2.0 is given, 1.0 goes on {HINT}"]
    assert [group["lr"] for group in runner.engine.optimizers["optimizer"].param_groups] == [0.5, 1.0]


def test_state_of_hooks_that_is_dropped_and_hooks_without_state_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, StopAt(3), {"type": "EMAHook"})
    capsys.readouterr()
    run(tmp_path, StopAt(5), Memory(), Moves())
    assert told(capsys.readouterr().out) == [
        "the checkpoint has state of EMAHook, which this run has not; it is dropped",
        "the checkpoint has no state of Memory: new in this run, and begins anew",
    ]
    run(tmp_path, Memory())
    assert told(capsys.readouterr().out) == []
