"""Our own loops over the task that other frameworks are given."""

from functools import partial
from typing import Any

from peers import Task, Variant
from peers.task import LEARNING_RATE, LOG_EVERY

from stratrun import Runner

HOOKS = ("timer", "scheduler", "logger", "checkpoint")
ALL_LOGGERS = ["console", "jsonl", "tensorboard"]


def train(task: Task, **options: Any) -> None:
    runner = Runner(
        task.model,
        loss="cross_entropy",
        train_dataloader=task.batches,
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": LEARNING_RATE},
        work_dir=task.folder,
        **options,
    )
    runner.train()
    runner.close()


def evaluate(task: Task, **options: Any) -> float:
    runner = Runner(
        task.model,
        test_dataloader=task.batches,
        test_evaluator="Accuracy",
        work_dir=task.folder,
        **options,
    )
    accuracy = runner.test()["accuracy"]
    runner.close()
    return accuracy


# Saves at the end are outside of what is timed; the hook is on, as what it does at each iteration counts.
FULL: dict[str, Any] = {"default_hooks": {"logger": {"interval": LOG_EVERY}}, "loggers": ALL_LOGGERS}
NOTHING: dict[str, Any] = {"default_hooks": dict.fromkeys(HOOKS), "loggers": []}

VARIANTS = (
    Variant("stratrun, no hooks, no loggers", "train", False, partial(train, **NOTHING)),
    Variant("stratrun, default hooks", "train", False, partial(train, loggers=[])),
    Variant("stratrun, default hooks, console + JSONL + TensorBoard", "train", True, partial(train, **FULL)),
    Variant("stratrun, accuracy", "evaluate", False, partial(evaluate, **NOTHING)),
    Variant("stratrun, accuracy, default hooks, three loggers", "evaluate", True, partial(evaluate, **FULL)),
)
