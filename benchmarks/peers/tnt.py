"""TorchTNT."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy
from torchtnt.framework.auto_unit import AutoUnit, TrainStepResults
from torchtnt.framework.callbacks import TQDMProgressBar
from torchtnt.framework.evaluate import evaluate as run_evaluation
from torchtnt.framework.state import State
from torchtnt.framework.train import train as run_training
from torchtnt.framework.unit import EvalUnit, TrainUnit
from torchtnt.utils.loggers import TensorBoardLogger

from peers.task import CLASSES, LEARNING_RATE, LOG_EVERY, Batch, Task, Variant


class Training(TrainUnit[Batch]):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)

    def train_step(self, state: State, data: Batch) -> None:
        inputs, targets = data
        functional.cross_entropy(self.net(inputs), targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Automatic(AutoUnit[Batch]):
    def __init__(self, net: nn.Module, logger: TensorBoardLogger | None = None) -> None:
        super().__init__(module=net, device=torch.device("cpu"))
        self.logger = logger

    def compute_loss(self, state: State, data: Batch) -> tuple[Tensor, Any]:
        inputs, targets = data
        outputs = self.module(inputs)
        return functional.cross_entropy(outputs, targets), outputs

    def configure_optimizers_and_lr_scheduler(self, module: nn.Module) -> tuple[torch.optim.Optimizer, None]:
        return torch.optim.SGD(module.parameters(), lr=LEARNING_RATE), None

    def on_train_step_end(self, state: State, data: Batch, step: int, results: TrainStepResults) -> None:
        if self.logger is not None and (step + 1) % LOG_EVERY == 0:
            self.logger.log("loss", results.loss, step)


class Evaluation(EvalUnit[Batch]):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

    def eval_step(self, state: State, data: Batch) -> None:
        inputs, targets = data
        self.accuracy.update(self.net(inputs), targets)


def train(task: Task) -> None:
    run_training(Training(task.model), task.batches, max_epochs=1)


def train_automatically(task: Task) -> None:
    run_training(Automatic(task.model), task.batches, max_epochs=1)


def train_and_log(task: Task) -> None:
    logger = TensorBoardLogger(task.folder)
    unit = Automatic(task.model, logger)
    run_training(unit, task.batches, max_epochs=1, callbacks=[TQDMProgressBar(refresh_rate=LOG_EVERY)])
    logger.close()


def evaluate(task: Task) -> float:
    unit = Evaluation(task.model)
    run_evaluation(unit, task.batches)
    return float(unit.accuracy.compute())


VARIANTS = (
    Variant("TorchTNT, TrainUnit", "train", False, train),
    Variant("TorchTNT, AutoUnit", "train", False, train_automatically),
    Variant("TorchTNT, AutoUnit, bar + TensorBoard", "train", True, train_and_log),
    Variant("TorchTNT, torchmetrics", "evaluate", False, evaluate),
)
