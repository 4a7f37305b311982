"""Runs to load from and into, for tests of `load_from`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stratrun import Runner
from stratrun.checkpoint.parts import PARTS
from stratrun.hooks import Hook
from stratrun.loggers import Logger
from stratrun.loops import EpochBasedTrainLoop
from tests.problems import CLASSES, FEATURES, points

SAMPLES, BATCH, EPOCHS = 24, 4, 3
ALL = list(PARTS)


class Words(Logger):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, record: Any) -> None:
        return None

    def say(self, text: str) -> None:
        self.said.append(text)


class Counting(Hook):
    """A hook with state."""

    count = 0

    def after_train_iter(self) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class StopAfter(Hook):
    """Ends training after so many iterations, as a signal would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.request("stop", agreed=True)


def network(seed: int = 0, **names: Any) -> nn.Module:
    """A model that draws random numbers when it trains."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = {"body": nn.Linear(FEATURES, 8), "drop": nn.Dropout(0.5), "head": nn.Linear(8, CLASSES)}
        made = nn.Sequential()
        for name, layer in layers.items():
            made.add_module(names.get(name, name), layer)
        return made


def runner(work_dir: Path | str, model: nn.Module | None = None, **changes: Any) -> Runner:
    form: dict[str, Any] = {
        "model": network() if model is None else model,
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(SAMPLES), "global_batch_size": BATCH},
        "train_cfg": {"max_epochs": EPOCHS},
        "optimizer": {"type": "Adam", "lr": 0.05},
        "param_scheduler": {"type": "ExponentialLR", "gamma": 0.5},
        "default_hooks": {"checkpoint": {"interval": 1}},
        "custom_hooks": [Counting()],
        "loggers": (),
        "work_dir": str(work_dir),
        "randomness": {"seed": 3},
    }
    return Runner(**{**form, **changes})


def train(work_dir: Path | str, model: nn.Module | None = None, **changes: Any) -> Runner:
    made = runner(work_dir, model, **changes)
    made.train()
    made.close()
    return made


class Idle(EpochBasedTrainLoop):
    """Trains nothing, so that the run stays as it was loaded."""

    def run(self) -> None:
        return None


def load(work_dir: Path | str, model: nn.Module | None = None, **changes: Any) -> Runner:
    return train(work_dir, model, **{"train_cfg": {"type": Idle, "max_epochs": EPOCHS}, **changes})


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
