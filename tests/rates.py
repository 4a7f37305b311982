"""What updates are made with, in runs and in plain loops."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from stratrun.hooks import Hook
from tests.problems import perceptron, points, trained

SAMPLES, BATCH = 28, 4
"""Seven batches an epoch: four updates with an accumulation of two."""
EACH = 4


class Used(Hook):
    """Notes values of the parameter groups of one optimizer that each update is made with."""

    priority = 95

    def __init__(self, *keys: str) -> None:
        self.keys = keys or ("lr",)
        self.by_update: dict[int, list[Any]] = {}

    def before_train_iter(self, runner: Any) -> None:
        groups = next(iter(runner.engine.optimizers.values())).param_groups
        self.by_update[runner.step] = [group[key] for group in groups for key in self.keys]

    @property
    def first(self) -> list[Any]:
        """The first of them, update by update."""
        return [values[0] for _, values in sorted(self.by_update.items())]


class StopAt(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.iteration:
            runner.request("stop", agreed=True)


def form(work_dir: Any, schedule: Any, *hooks: Any, **options: Any) -> dict[str, Any]:
    return {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(SAMPLES), "global_batch_size": BATCH, "shuffle": False},
        "train_cfg": {"max_epochs": 3, "accumulate": 2},
        "optimizer": {"type": "SGD", "lr": 0.5, "momentum": 0.9},
        "param_scheduler": schedule,
        "custom_hooks": list(hooks),
        "randomness": {"seed": 1},
        "work_dir": str(work_dir),
        **options,
    }


def used(work_dir: Any, schedule: Any, *keys: str, **options: Any) -> Used:
    """What the updates of a run are made with."""
    hook = Used(*keys)
    trained(perceptron(), **form(work_dir, schedule, hook, **options))
    return hook


def rates(work_dir: Any, schedule: Any, **options: Any) -> list[float]:
    return used(work_dir, schedule, **options).first


def plain(
    make: Callable[[Optimizer], Sequence[tuple[Any, bool]]], epochs: int = 3, each: int = EACH
) -> list[float]:
    """Learning rates of updates in a loop as one writes it by hand.

    Args:
        make: Gives the schedulers, and of each whether it moves by epochs.
    """
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    schedulers, found = make(optimizer), []
    for _ in range(epochs):
        for _ in range(each):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            for scheduler, by_epoch in schedulers:
                if not by_epoch:
                    scheduler.step()
        for scheduler, by_epoch in schedulers:
            if by_epoch:
                scheduler.step()
    return found


def plain_weights(
    optimizer: Callable[[Any], Optimizer], before: Callable[[Optimizer, int], None]
) -> dict[str, torch.Tensor]:
    """Weights after three epochs of the run of `form`, in one process.

    Args:
        before: Sets what the update of a number is made with.
    """
    model, (inputs, targets) = perceptron(), points(SAMPLES).tensors
    update, made = 0, optimizer(model.parameters())
    for _ in range(3):
        batches = list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))
        for start in range(0, len(batches), 2):
            window = batches[start : start + 2]
            for one, wanted in window:
                (cross_entropy(model(one), wanted) / len(window)).backward()
            before(made, update)
            made.step()
            made.zero_grad()
            update += 1
    return model.state_dict()
