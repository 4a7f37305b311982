"""What a user's own code raises comes out as it is, with the user's frame at its end."""

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from stratrun import Hook
from stratrun.evaluation import BaseMetric, Metric
from tests.mistakes.mistake import message, train


class OursError(Exception):
    """A mistake in the user's code."""


def fails(*args: Any, **kwargs: Any) -> Any:
    raise OursError("mine")


class Forward(nn.Module):
    """Its forward pass fails."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, points: Tensor) -> Tensor:
        raise OursError("mine")


class Rows(Dataset[Any]):
    """Its third sample fails."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        if index == 2:
            raise OursError("mine")
        return torch.zeros(4), 1


class Unread(Rows):
    """It fails when it is made."""

    def __init__(self) -> None:
        raise OursError("mine")


class Update(Metric):
    """Its update fails."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        raise OursError("mine")

    def compute(self) -> float:
        return 0.0


class Results(BaseMetric):
    """Its results cannot be computed."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        raise OursError("mine")


class Point(Hook):
    """It fails after the first iteration."""

    def after_train_iter(self) -> None:
        raise OursError("mine")


class Late(Hook):
    """It fails when it is told that something failed."""

    def before_train_epoch(self) -> None:
        raise OursError("mine")

    def on_exception(self) -> None:
        raise ValueError("a second one")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": fails},
        {"model": Forward()},
        {"loss": fails},
        {"optimizer": fails},
        {"train_dataloader": {"dataset": Rows(), "batch_size": 4}},
        {"train_dataloader": {"dataset": {"type": Unread}}},
        {"train_dataloader": {"dataset": [torch.zeros(4)] * 8, "collate_fn": fails}},
        {"train_dataloader": fails},
        {"val_evaluator": Update()},
        {"val_evaluator": Results()},
        {"custom_hooks": [Point()]},
        {"custom_hooks": [Late()]},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_what_the_users_code_raises_ends_in_the_users_frame(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(OursError) as caught:
        train(tmp_path, **changes)
    assert str(caught.value) == "mine"
    assert traceback.extract_tb(caught.tb)[-1].filename == __file__
    assert len(message(caught.value).splitlines()) <= 6


def test_what_fails_in_a_loader_worker_names_the_users_line(tmp_path: Path) -> None:
    with pytest.raises(OursError) as caught:
        train(tmp_path, train_dataloader={"dataset": Rows(), "batch_size": 4, "num_workers": 1})
    assert __file__ in str(caught.value)
    assert "mine" in str(caught.value)


def test_an_error_in_a_hook_says_which_hook_point_and_step(tmp_path: Path) -> None:
    with pytest.raises(OursError) as caught:
        train(tmp_path, custom_hooks=[Point()])
    assert "in Point.after_train_iter, step 1" in message(caught.value)


def test_what_fails_after_an_error_does_not_hide_it(tmp_path: Path) -> None:
    with pytest.raises(OursError) as caught:
        train(tmp_path, custom_hooks=[Late()])
    assert "ValueError: a second one" in message(caught.value)
