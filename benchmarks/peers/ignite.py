"""PyTorch Ignite."""

from typing import Any

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers.tensorboard_logger import TensorboardLogger
from ignite.handlers.tqdm_logger import ProgressBar
from ignite.metrics import Accuracy
from torch import nn
from torch.nn import functional

from peers.task import LEARNING_RATE, LOG_EVERY, Task, Variant


def train_with_engine(task: Task) -> None:
    model = task.model
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def step(engine: Engine, batch: Any) -> None:
        model.train()
        inputs, targets = batch
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    Engine(step).run(task.batches, max_epochs=1)


def train(task: Task) -> None:
    optimizer = torch.optim.SGD(task.model.parameters(), lr=LEARNING_RATE)
    trainer = create_supervised_trainer(task.model, optimizer, nn.CrossEntropyLoss())
    trainer.run(task.batches, max_epochs=1)


def train_and_log(task: Task) -> None:
    optimizer = torch.optim.SGD(task.model.parameters(), lr=LEARNING_RATE)
    trainer = create_supervised_trainer(task.model, optimizer, nn.CrossEntropyLoss())
    ProgressBar().attach(
        trainer,
        event_name=Events.ITERATION_COMPLETED(every=LOG_EVERY),
        closing_event_name=Events.EPOCH_COMPLETED,
        output_transform=lambda loss: {"loss": loss},
    )
    with TensorboardLogger(log_dir=task.folder) as logger:
        logger.attach_output_handler(
            trainer,
            event_name=Events.ITERATION_COMPLETED(every=LOG_EVERY),
            tag="train",
            output_transform=lambda loss: {"loss": loss},
        )
        trainer.run(task.batches, max_epochs=1)


def evaluate(task: Task) -> float:
    evaluator = create_supervised_evaluator(task.model, metrics={"accuracy": Accuracy()})
    return float(evaluator.run(task.batches).metrics["accuracy"])


VARIANTS = (
    Variant("Ignite, engine", "train", False, train_with_engine),
    Variant("Ignite, supervised trainer", "train", False, train),
    Variant("Ignite, bar + TensorBoard", "train", True, train_and_log),
    Variant("Ignite, accuracy", "evaluate", False, evaluate),
)
