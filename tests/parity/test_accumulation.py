"""Numbers of accumulated batches that change, against plain loops, on several ranks and over a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset

from stratrun.errors import ConfigError
from stratrun.hooks import Hook
from stratrun.loops.schedule import Accumulation
from tests.problems import perceptron, points, trained, weights
from tests.ranks import Ranks

SAMPLES, BATCH = 26, 4  # seven batches a pass, the last of two samples
RATE = 0.3
CASES: dict[str, tuple[dict[str, Any], list[list[int]]]] = {
    # By number of the batch, through all passes.
    "epochs": (
        {"max_epochs": 3, "accumulate": [(0, 1), (1, 3), (2, 2)]},
        [
            *([number] for number in range(7)),
            *([7, 8, 9], [10, 11, 12], [13]),
            *([14, 15], [16, 17], [18, 19], [20]),
        ],
    ),
    "epochs as a dict": (
        {"max_epochs": 2, "accumulate": {1: 4}},
        [*([number] for number in range(7)), [7, 8, 9, 10], [11, 12, 13]],
    ),
    "iterations": (
        {"by_epoch": False, "max_iters": 17, "accumulate": [(0, 2), (3, 3), (9, 3), (11, 4)]},
        # Cut short at 3, by the end of the data at 7, at 11, at 14, and by the end of training.
        [[0, 1], [2], [3, 4, 5], [6], [7, 8, 9], [10], [11, 12, 13], [14, 15, 16]],
    ),
    "iterations from the middle on": (
        {"by_epoch": False, "max_iters": 10, "accumulate": {"5": 2, "8": 1}},
        [[0], [1], [2], [3], [4], [5, 6], [7], [8], [9]],
    ),
}


class Stream(IterableDataset[Any]):
    """The same samples, of which nobody knows how many there are."""

    def __iter__(self) -> Any:
        return iter(zip(*points(SAMPLES).tensors, strict=True))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()

    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])


def plain(updates: list[list[int]]) -> dict[str, Tensor]:
    model, (inputs, targets) = perceptron(), points(SAMPLES).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    parts = list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))
    for window in updates:
        for number in window:
            x, y = parts[number % len(parts)]
            (cross_entropy(model(x), y) / len(window)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


class Steps(Hook):
    """Notes how many updates there were, each time that it may have changed."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.seen: list[int] = []

    def after_train_iter(self, runner: Any) -> None:
        self.seen.append(runner.step)
        if runner.iter == self.stop:
            runner.request("stop", agreed=True)


def with_runner(train_cfg: dict[str, Any], work_dir: str, strategy: Any, **options: Any) -> Any:
    model, steps = Classifier(), Steps(options.pop("stop", None))
    data = {"dataset": points(SAMPLES), "global_batch_size": BATCH, "shuffle": False}
    runner = trained(
        model,
        **{
            "train_dataloader": data,
            "train_cfg": train_cfg,
            "optimizer": {"type": "SGD", "lr": RATE, "momentum": 0.9},
            "clip_grad": 0.2,
            "strategy": strategy,
            "custom_hooks": [steps],
            "work_dir": work_dir,
            **options,
        },
    )
    shared = runner.engine.saved.shared_state()["model"]
    whole = {
        name.removeprefix("net."): value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
        for name, value in shared.items()
    }
    return whole, steps.seen, runner.step


def counts(updates: list[list[int]]) -> list[int]:
    """Updates made when each batch is done."""
    found = []
    for done, window in enumerate(updates):
        found += [done] * (len(window) - 1) + [done + 1]
    return found


@pytest.mark.parametrize("case", CASES)
def test_windows_are_as_long_as_the_schedule_says_and_none_reaches_over_a_change(
    case: str, tmp_path: Path
) -> None:
    train_cfg, updates = CASES[case]
    found, steps, _ = with_runner(train_cfg, str(tmp_path), "single")
    assert steps == counts(updates)
    torch.testing.assert_close(found, plain(updates), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_schedules_know_how_many_updates_there_are_and_where_epochs_end(case: str, tmp_path: Path) -> None:
    train_cfg, updates = CASES[case]
    runner = trained(
        Classifier(),
        train_dataloader={"dataset": points(SAMPLES), "batch_size": BATCH},
        train_cfg=train_cfg,
        optimizer={"type": "SGD", "lr": RATE},
        param_scheduler={"type": "PolynomialLR", "by_epoch": False, "total_iters": "auto"},
        work_dir=tmp_path,
    )
    assert runner.engine.optimizers["optimizer"].param_groups[0]["lr"] == 0.0
    extent = runner._loops["train"].extent()
    whole = [number for number, window in enumerate(updates, start=1) if window[-1] % 7 == 6]
    assert (extent.updates, list(extent.epoch_ends())) == (len(updates), whole)
    assert [extent.updates_at(epochs) for epochs in range(len(whole) + 1)] == [0, *whole]
    middle = (whole[0] + ([*whole, 0][1] or 2 * whole[0])) / 2
    assert extent.updates_at(1.5) == middle


def test_epochs_with_other_numbers_of_updates_are_not_turned_into_updates(tmp_path: Path) -> None:
    schedule = {"type": "StepLR", "step_size": 1, "convert_to_iter_based": True}
    with pytest.raises(ConfigError, match="with accumulate= that changes they are not always as many"):
        with_runner(CASES["epochs"][0], str(tmp_path), "single", param_scheduler=schedule)


@pytest.mark.parametrize("case", CASES)
def test_data_without_length_comes_to_the_same(case: str, tmp_path: Path) -> None:
    train_cfg, updates = CASES[case]
    data = {"dataset": Stream(), "batch_size": BATCH}
    found, _, updated = with_runner(train_cfg, str(tmp_path), "single", train_dataloader=data)
    assert updated == len(updates)
    torch.testing.assert_close(found, plain(updates), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "unsharded"])
@pytest.mark.parametrize("case", ["epochs", "iterations"])
def test_several_ranks_come_to_the_same(case: str, strategy: str, two_ranks: Ranks, tmp_path: Path) -> None:
    train_cfg, updates = CASES[case]
    given = {"type": "fsdp", "accumulate": "unsharded"} if strategy == "unsharded" else strategy
    for found, steps, _ in two_ranks(with_runner, train_cfg, str(tmp_path), given):
        assert steps == counts(updates)
        torch.testing.assert_close(found, plain(updates), rtol=1e-5, atol=1e-6)


def stopped_and_resumed(train_cfg: dict[str, Any], work_dir: str, strategy: str, at: list[int]) -> list[str]:
    """What differs from a run that was not stopped, to the bit."""
    truth, steps, _ = with_runner(train_cfg, f"{work_dir}/whole", strategy)
    wrong = []
    for stop in at:
        saved = {"default_hooks": {}}
        _, before, _ = with_runner(train_cfg, f"{work_dir}/{stop}", strategy, stop=stop, **saved)
        found, after, _ = with_runner(train_cfg, f"{work_dir}/{stop}", strategy, resume=True, **saved)
        wrong += [f"steps after {stop}"] if before + after != steps else []
        wrong += [f"{name} after {stop}" for name in truth if not torch.equal(truth[name], found[name])]
    return wrong


def test_stopped_anywhere_it_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    for case, stops in (("epochs", [6, 8, 9, 15]), ("iterations", list(range(1, 17)))):
        train_cfg, _ = CASES[case]
        assert stopped_and_resumed(train_cfg, str(tmp_path / case), "single", stops) == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_so_it_is_on_several_ranks(strategy: str, two_ranks: Ranks, tmp_path: Path) -> None:
    # In a window that a change cuts short, right at a change, and in the window after one.
    train_cfg, _ = CASES["iterations"]
    assert two_ranks(stopped_and_resumed, train_cfg, str(tmp_path), strategy, [2, 3, 10, 12]) == [[], []]


def test_a_window_that_is_open_goes_on_on_another_number_of_ranks(two_ranks: Ranks, tmp_path: Path) -> None:
    train_cfg, updates = CASES["iterations"]
    for stop in (2, 5, 12):
        work_dir = str(tmp_path / str(stop))
        saved = {"default_hooks": {}}
        two_ranks(with_runner, train_cfg, work_dir, "ddp", stop=stop, **saved)
        found, _, _ = with_runner(train_cfg, work_dir, "single", resume=True, **saved)
        torch.testing.assert_close(found, plain(updates), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [0, 1.5, True, "4", [], {}, [3], [(0, 1), (0, 2)], [(5, 1), (3, 2)], [(0, 0)], [(-1, 2)], {"a": 2}],
    ids=str,
)
def test_what_is_no_number_and_no_schedule_is_refused(spec: Any) -> None:
    with pytest.raises(ConfigError, match="accumulate="):
        Accumulation(spec)


def test_a_schedule_that_changes_nothing_is_a_number() -> None:
    assert Accumulation([(0, 2), (4, 2)]).plain == Accumulation(2).plain == 2
    assert Accumulation({3: 1}).plain == 1
    changing = Accumulation([(2, 4), (6, 1)], "iteration")
    assert changing.plain == [[0, 1], [2, 4], [6, 1]] and changing.most == 4
    assert list(map(changing.at, range(8))) == [1, 1, 4, 4, 4, 4, 1, 1]
    assert [changing.until(count) for count in (0, 2, 6)] == [2, 6, None]
    assert [changing.since(count) for count in (1, 5, 9)] == [0, 2, 6]
