"""What one rank asks for all do, after the same iteration; and what the asking costs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun import Hook, Runner
from stratrun.control import Control, ControlSettings, agreement, exchange
from stratrun.state import TrainState
from tests.ranks import Ranks

POINTS = [(torch.tensor([n / 24, 1.0]), torch.tensor(n % 2)) for n in range(48)]


class Alone(Hook):
    """Does something on rank 1 alone, after so many iterations, and notes what all do."""

    def __init__(self, act: Any = None, iteration: int = 3) -> None:
        self.act, self.iteration = act, iteration
        self.saved: list[int] = []
        self.validated: list[int] = []

    def after_train_iter(self, runner: Any) -> None:
        if self.act is not None and runner.rank == 1 and runner.iter == self.iteration:
            self.act(runner)

    def before_save_checkpoint(self, runner: Any) -> None:
        self.saved.append(runner.iter)

    def after_val(self, runner: Any) -> None:
        self.validated.append(runner.iter)


def both(runner: Any) -> None:
    runner.request("save")
    runner.request("validate", "to see")


def stop(runner: Any) -> None:
    runner.state.should_stop = True
    assert not runner.state.should_stop  # not before the other has heard of it


def late(runner: Any) -> None:
    runner.control._started -= 1000.0


def trained(
    place: str, hook: Alone, *, interval: int | None = None, hooks: Sequence[Hook] = (), **options: Any
) -> tuple[Any, ...]:
    """Two epochs of twelve iterations, in windows of five."""
    torch.manual_seed(0)
    runner = Runner(
        nn.Linear(2, 2),
        loss="cross_entropy",
        work_dir=place,
        train_dataloader={"dataset": POINTS, "global_batch_size": 4},
        val_dataloader={"dataset": POINTS[:6], "global_batch_size": 4},
        val_evaluator={"type": "Accuracy"},
        train_cfg={"max_epochs": 2, "accumulate": 5, "val_begin": 9},
        optimizer={"type": "SGD", "lr": 0.1, "momentum": 0.9},
        default_hooks={"checkpoint": {"interval": interval, "by_epoch": False, "save_on": "stop"}},
        custom_hooks=[hook, *hooks],
        loggers=[],
        randomness={"seed": 0},
        **options,
    )
    runner.train()
    weights = [value.clone() for value in runner.model.state_dict().values()]
    return runner.iter, hook.saved, hook.validated, runner.state.stop_reason, weights


class AtStart(Hook):
    """Has rank 1 alone ask for the end before the first iteration."""

    def before_train(self, runner: Any) -> None:
        if runner.rank == 1:
            runner.request("stop", "all is there")


def wishes(folder: str) -> dict[str, tuple[Any, ...]]:
    # As in a run whose steps take long enough for an exchange in each.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "EVERY", 0.0)
        return granted(folder)


def granted(folder: str) -> dict[str, tuple[Any, ...]]:
    limit: dict[str, Any] = {"control_cfg": {"time_limit": 500}}
    return {
        "whole": trained(f"{folder}/whole", Alone()),
        "both": trained(f"{folder}/both", Alone(both)),
        "stop": trained(f"{folder}/stop", Alone(stop)),
        "stop at a save": trained(f"{folder}/saves", Alone(stop), interval=1),
        "at the start": trained(f"{folder}/start", Alone(), hooks=[AtStart()]),
        "late": trained(f"{folder}/late", Alone(late), **limit),
        "late again": trained(f"{folder}/late", Alone(), resume=True, **limit),
    }


def test_what_rank_1_alone_asks_for_both_do_after_the_same_iteration_and_lose_nothing(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    found, other = two_ranks(wishes, str(tmp_path))
    for name in found:
        assert found[name][:4] == other[name][:4], name
    iterations, saved, validated = found["both"][:3]
    assert iterations == 24 and saved == validated and len(saved) == 1 and 3 < saved[0] <= 12
    for name in ("stop", "late"):
        iterations, saved, validated, reason, _ = found[name]
        assert saved == [iterations] and 3 < iterations <= 12 and validated == [], name
        assert ("time limit of 500 s" in reason) == (name == "late")
    assert found["at the start"][0] == 0
    # The save of its own interval is the one it stops with.
    iterations, saved, *_ = found["stop at a save"]
    assert saved == list(range(1, iterations + 1))
    # What was asked for in the middle of a window changes no weight, nor does going on from there.
    for name in ("both", "late again"):
        pairs = zip(found[name][4], found["whole"][4], strict=True)
        assert all(torch.equal(one, whole) for one, whole in pairs), name


class Twins:
    """Two ranks that say the same."""

    world_size = 2
    board = None

    def __init__(self) -> None:
        self.sums = 0

    def begin_sum(self, tensor: Tensor) -> Any:
        self.sums += 1
        tensor.mul_(2)
        return lambda: None


@pytest.mark.parametrize(("step", "most"), [(0.4, 100), (0.252, 100), (0.051, 23), (0.0002, 3)])
def test_sums_are_begun_at_most_every_quarter_of_a_second_and_a_step_between_them_compares_two_numbers(
    step: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(agreement, "time", SimpleNamespace(monotonic=lambda: now))
    twins, control = Twins(), Control(TrainState())
    (look,) = control.connect(
        twins,  # type: ignore[arg-type]
        ControlSettings(),
        settle=lambda: None,
        apart=True,
        together=lambda: True,
    )
    control.meet()
    calls: list[str] = []
    quiet = 0
    before = twins.sums
    for iteration in range(1, 101):
        now += step
        calls.clear()
        begun = twins.sums
        sys.setprofile(lambda frame, event, arg: calls.append(f"{event} {frame.f_code.co_name}"))
        look(iteration)
        sys.setprofile(None)
        if twins.sums == begun:
            quiet += 1
            assert calls[:2] == ["call _look", "return _look"] and len(calls) == 3  # the last ends the watch
    sums = twins.sums - before
    assert sums + quiet == 100 and most - 3 <= sums <= most
