"""What a run says of itself: the arithmetic of its batches, its checkpoints, and where its time went."""

import os
import re
import signal
import time
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from stratrun import Runner
from stratrun.errors import Interrupted
from stratrun.hooks import CheckpointHook, LambdaHook
from stratrun.loggers import ConsoleLogger
from stratrun.runner.invocation import Invocation
from tests.problems import CLASSES, FEATURES, points
from tests.ranks import Ranks


class Slow(Dataset[Any]):
    """Samples that take ten milliseconds each."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.01)
        return torch.zeros(FEATURES), 0


class SlowModel(nn.Linear):
    """A model that takes its time to evaluate."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            time.sleep(0.02)
        return super().forward(x)


def told(work_dir: Path, invocation: Invocation | None = None, **changes: Any) -> str:
    """All that a run says."""
    stream = StringIO()
    given: dict[str, Any] = {
        "model": nn.Linear(FEATURES, CLASSES),
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(24), "batch_size": 3},
        "train_cfg": {"max_epochs": 1},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "loggers": [ConsoleLogger(stream=stream)],
        "work_dir": work_dir,
        "accelerator": "cpu",
    }
    runner = Runner(**{**given, **changes})
    runner.invocation = invocation
    with suppress(Interrupted):
        runner.train()
    runner.close()
    return stream.getvalue()


def shares(text: str) -> dict[str, int]:
    (line,) = re.findall(r"^  in .*: (.*);", text, re.M)
    return {what: int(percent) for percent, what in re.findall(r"(\d+)% ([^,;]+)", line)}


def test_the_samples_of_an_update_are_told_as_what_they_are_made_of(tmp_path: Path) -> None:
    assert "  update=3 samples: 3 a batch\n" in told(tmp_path / "a")
    text = told(tmp_path / "b", train_cfg={"max_epochs": 1, "accumulate": 4})
    assert "  update=12 samples: 3 a batch x 4 accumulated\n" in text


def update_line_of_two(work_dir: Path) -> list[str]:
    text = told(work_dir, strategy="ddp", train_cfg={"max_epochs": 1, "accumulate": 2})
    return re.findall(r"update=.*", text)


def test_ranks_are_told_in_the_samples_of_an_update(two_ranks: Ranks, tmp_path: Path) -> None:
    first, _ = two_ranks(update_line_of_two, tmp_path)
    assert first == ["update=12 samples: 3 a batch x 2 ranks x 2 accumulated"]


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        ({}, "every epoch, at the end, on a stop; the newest 3 are kept"),
        (
            {"interval": 500, "by_epoch": False, "keep_last": None, "save_on": None},
            "every 500 iterations; all are kept",
        ),
        (
            {"interval": None, "minutes": 30, "save_best": "accuracy", "save_on": "exception"},
            "every 30 minutes, at the best accuracy, on an exception; the newest 3 are kept",
        ),
        ({"interval": None, "save_on": None}, "only when asked for; the newest 3 are kept"),
    ],
)
def test_the_plan_of_checkpoints_is_told_in_words(options: dict[str, Any], plan: str) -> None:
    assert CheckpointHook(**options).plan == plan


def test_a_run_says_when_it_will_save(tmp_path: Path) -> None:
    assert f"  checkpoints: {CheckpointHook().plan}\n" in f"{told(tmp_path / 'a')}\n"
    assert "checkpoints:" not in told(tmp_path / "b", default_hooks={"checkpoint": None})


def test_time_that_goes_into_waiting_for_samples_is_told_as_such(tmp_path: Path) -> None:
    split = shares(told(tmp_path, train_dataloader={"dataset": Slow(), "batch_size": 3}))
    assert split["waiting for data"] > 50
    assert 97 <= sum(split.values()) <= 101


def test_time_that_goes_into_validation_is_told_as_such(tmp_path: Path) -> None:
    text = told(
        tmp_path,
        model=SlowModel(FEATURES, CLASSES),
        val_dataloader={"dataset": points(24), "batch_size": 1},
        val_evaluator={"type": "Accuracy"},
    )
    assert shares(text)["validation"] > 50


def test_time_that_goes_into_saving_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stratrun.checkpoint import Checkpointer

    save = Checkpointer.save

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.5)
        return save(*args, **options)

    monkeypatch.setattr(Checkpointer, "save", slow)
    assert (
        shares(told(tmp_path, default_hooks={"checkpoint": {"save_on": "end", "interval": None}}))["saving"]
        > 50
    )


def test_samples_a_second_are_those_of_this_run_not_of_the_one_it_goes_on_from(tmp_path: Path) -> None:
    told(tmp_path)
    text = told(
        tmp_path,
        resume=True,
        train_cfg={"max_epochs": 2},
        train_dataloader={"dataset": Slow(), "batch_size": 3},
    )
    (rate,) = re.findall(r"; ([\d,.]+) samples/s", text)
    # Ten milliseconds a sample allow no more.
    assert 10 < float(rate.replace(",", "")) <= 100


def interrupt(runner: Any) -> None:
    if runner.iter == 3:
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_was_cut_short_says_how_to_go_on(tmp_path: Path) -> None:
    hook = LambdaHook(after_train_iter=interrupt)
    text = told(tmp_path / "a", custom_hooks=[hook])
    assert f"  next: resume=True, work_dir='{tmp_path / 'a'}' to go on" in text
    text = told(tmp_path / "b", Invocation("c.yaml", ("a=1",)), custom_hooks=[hook])
    assert f"train c.yaml a=1 work_dir={tmp_path / 'b'} resume=true" in text


def test_a_run_that_is_done_says_how_to_measure_it(tmp_path: Path) -> None:
    data = {"dataset": points(8), "batch_size": 4}
    given = {"test_dataloader": data, "test_evaluator": {"type": "Accuracy"}}
    text = told(tmp_path, Invocation("c.yaml"), **given)
    assert f"test c.yaml load_from={tmp_path}/checkpoints/step-00000008" in text
