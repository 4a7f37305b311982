"""What a mistake of a user is: code that runs into it, and what the user must be told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import TensorDataset

from stratrun import Runner

Act = Callable[[Path], object]


@dataclass(frozen=True)
class Mistake:
    """A user's mistake. `act` makes it, in a folder of its own.

    Args:
        words: What the message must hold: the value given, why it will not do, what would.
        environ: Variables of the environment to make it in.
        shows: When it can show at the earliest: `refused` before anything is connected or built,
            `built` before anything is written, or `running`.
        prepare: What the user had done before, without a mistake.
    """

    act: Act
    error: type[Exception]
    words: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    shows: Literal["refused", "built", "running"] = "refused"
    prepare: Act | None = None

    @property
    def name(self) -> str:
        return self.act.__name__


MISTAKES: list[Mistake] = []


def mistake(error: type[Exception], *words: str, **about: Any) -> Callable[[Act], Act]:
    """Decorator that adds a function to the corpus."""

    def add(act: Act) -> Act:
        MISTAKES.append(Mistake(act, error, words, **about))
        return act

    return add


def message(error: BaseException) -> str:
    """What the user reads below the traceback: the text, and the notes on where it happened."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def samples(count: int = 16) -> TensorDataset:
    """Points, and to which of three classes they belong."""
    points = torch.arange(count * 4, dtype=torch.float32).reshape(count, 4) / (count * 4)
    return TensorDataset(points, torch.arange(count) % 3)


def runner(folder: Path, **changes: Any) -> Runner:
    """A run without a mistake, but for the changes."""
    data = {"dataset": samples(), "batch_size": 4}
    given: dict[str, Any] = {
        "model": nn.Linear(4, 3),
        "loss": "cross_entropy",
        "accelerator": "cpu",
        "train_dataloader": data,
        "train_cfg": {"by_epoch": True, "max_epochs": 1},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "val_dataloader": data,
        "val_evaluator": {"type": "Accuracy"},
        "loggers": ["jsonl"],
        "work_dir": folder / "work",
        "randomness": {"seed": 1},
    }
    return Runner(**{**given, **changes})


def train(folder: Path, **changes: Any) -> dict[str, float]:
    return runner(folder, **changes).train()
