"""When built-in loops validate, and where a run by iterations ends."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset

from stratrun import Runner
from stratrun.errors import MissingArgumentError
from stratrun.hooks import Hook
from tests.end_to_end.runs import GLOBAL_BATCH, SAMPLES, run
from tests.problems import perceptron, points, weights
from tests.ranks import Ranks


class Validations(Hook):
    """Notes how far training was at each validation."""

    def __init__(self) -> None:
        self.at: list[tuple[int, int]] = []
        self.epochs: list[int] = []

    def before_val(self, runner: Any) -> None:
        self.at.append((runner.epoch, runner.iter))

    def before_train_epoch(self, runner: Any) -> None:
        self.epochs.append(runner.iter)


def validations(train_cfg: dict[str, Any], work_dir: str, data: Any = None) -> Validations:
    hook = Validations()
    run(
        perceptron(),
        work_dir,
        loss="cross_entropy",
        train_dataloader={"dataset": data or points(SAMPLES), "batch_size": GLOBAL_BATCH},
        train_cfg=train_cfg,
        val_dataloader={"dataset": points(5), "batch_size": 2},
        val_evaluator={"type": "Accuracy"},
        custom_hooks=[hook],
    )
    return hook


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7]),
        ({"val_interval": 3}, [3, 6, 7]),
        ({"val_begin": 4}, [4, 5, 6, 7]),
        ({"val_begin": 3, "val_interval": 2}, [4, 6, 7]),
        ({"val_interval": 5, "dynamic_intervals": [(2, 2), (5, 1)]}, [2, 4, 5, 6, 7]),
        ({"val_begin": 9}, []),
    ],
)
def test_epochs_after_which_a_run_of_seven_validates(
    settings: dict[str, Any], epochs: list[int], tmp_path: Any
) -> None:
    at = validations({"max_epochs": 7, **settings}, str(tmp_path)).at
    assert at == [(epoch, epoch * 6) for epoch in epochs]


@pytest.mark.parametrize(
    ("settings", "iterations"),
    [
        ({"val_interval": 5}, [5, 10, 15]),
        ({"val_interval": 4, "val_begin": 6}, [8, 12, 15]),
        ({"val_interval": 6, "dynamic_intervals": [(9, 2)]}, [6, 10, 12, 14, 15]),
        ({}, [15]),
    ],
)
def test_iterations_after_which_a_run_of_fifteen_validates(
    settings: dict[str, Any], iterations: list[int], tmp_path: Any
) -> None:
    # Six iterations are a pass over the data.
    found = validations({"by_epoch": False, "max_iters": 15, **settings}, str(tmp_path))
    assert found.at == [(done // 6 if done % 6 else done // 6 - 1, done) for done in iterations]
    assert found.epochs == [0, 6, 12]


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = points(SAMPLES).tensors
        while True:
            yield from zip(inputs, targets, strict=True)


def test_data_without_an_end_is_trained_on_for_so_many_iterations(tmp_path: Any) -> None:
    found = validations({"max_iters": 9, "val_interval": 4}, str(tmp_path), Endless())
    assert found.at == [(0, 4), (0, 8), (0, 9)]


def plain_iterations() -> dict[str, Tensor]:
    """15 iterations over a pass of 6; windows of 4 and 2, 4 and 2, and 3."""
    model, (inputs, targets) = perceptron(), points(SAMPLES).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for window in ((0, 1, 2, 3), (4, 5), (0, 1, 2, 3), (4, 5), (0, 1, 2)):
        for number in window:
            part = slice(number * GLOBAL_BATCH, (number + 1) * GLOBAL_BATCH)
            (cross_entropy(model(inputs[part]), targets[part]) / len(window)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def by_iterations(work_dir: str) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    settings = {"by_epoch": False, "max_iters": 15, "accumulate": 4}
    runner = run(perceptron(), work_dir, loss="cross_entropy", train_cfg=settings)
    state = runner.state
    return weights(runner.model), (state.epoch, state.iter, state.step, state.samples)


def test_the_last_window_of_a_run_by_iterations_ends_with_the_run(two_ranks: Ranks, tmp_path: Any) -> None:
    for found, counts in [by_iterations(str(tmp_path)), *two_ranks(by_iterations, str(tmp_path))]:
        torch.testing.assert_close(found, plain_iterations(), rtol=1e-5, atol=1e-6)
        assert counts == (2, 15, 5, 2 * SAMPLES + 12)


class Curious(Hook):
    """Asks for a validation between a batch and the work on it."""

    def before_train_iter(self, runner: Any) -> None:
        runner.validate()


def validated_within(hooks: list[Hook], work_dir: str) -> tuple[dict[str, Tensor], int]:
    """The last batch is of three samples, which two ranks do not share equally."""
    runner = run(
        perceptron(),
        work_dir,
        loss="cross_entropy",
        train_dataloader={"dataset": points(23), "global_batch_size": GLOBAL_BATCH},
        randomness={"seed": 1},
        val_dataloader={"dataset": points(5), "batch_size": 2},
        val_evaluator={"type": "Accuracy"},
        custom_hooks=hooks,
    )
    return weights(runner.model), runner.samples


def test_a_validation_that_a_hook_asks_for_changes_nothing_of_the_batch_in_hand(
    two_ranks: Ranks, tmp_path: Any
) -> None:
    for (found, samples), (left_alone, _) in zip(
        two_ranks(validated_within, [Curious()], str(tmp_path / "curious")),
        two_ranks(validated_within, [], str(tmp_path / "plain")),
        strict=True,
    ):
        torch.testing.assert_close(found, left_alone, rtol=0, atol=0)
        assert samples == 2 * 23


def test_validating_while_no_job_runs_is_refused_with_what_to_call(tmp_path: Any) -> None:
    runner = Runner(
        perceptron(),
        work_dir=tmp_path,
        loss="cross_entropy",
        val_dataloader={"dataset": points(5), "batch_size": 2},
        val_evaluator={"type": "Accuracy"},
    )
    with pytest.raises(MissingArgumentError, match=r"no job is under way to val in; .* val\(\)"):
        runner.validate()
