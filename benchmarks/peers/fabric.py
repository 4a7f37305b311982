"""Lightning Fabric: its own loop is the user's."""

from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm

from peers.task import CLASSES, LEARNING_RATE, LOG_EVERY, Task, Variant, world_size


def _launched(**options: Any) -> Fabric:
    ranks = world_size()
    strategy = "ddp" if ranks > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=ranks, strategy=strategy, **options)
    fabric.launch()
    return fabric


def train(task: Task) -> None:
    fabric = _launched()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=LEARNING_RATE)
    model, optimizer = fabric.setup(task.model, optimizer)
    model.train()
    for inputs, targets in task.batches:
        optimizer.zero_grad()
        fabric.backward(functional.cross_entropy(model(inputs), targets))
        optimizer.step()


def train_and_log(task: Task) -> None:
    fabric = _launched(loggers=TensorBoardLogger(task.folder))
    optimizer = torch.optim.SGD(task.model.parameters(), lr=LEARNING_RATE)
    model, optimizer = fabric.setup(task.model, optimizer)
    model.train()
    for step, (inputs, targets) in enumerate(tqdm(task.batches), start=1):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        fabric.backward(loss)
        optimizer.step()
        if step % LOG_EVERY == 0:
            fabric.log("loss", loss.item(), step=step)


def evaluate(task: Task) -> float:
    fabric = _launched()
    model = fabric.setup(task.model)
    accuracy = MulticlassAccuracy(CLASSES, average="micro").to(fabric.device)
    model.eval()
    with torch.no_grad():
        for inputs, targets in task.batches:
            accuracy.update(model(inputs), targets)
    return float(accuracy.compute())


def evaluate_by_hand(task: Task) -> float:
    model = _launched().setup(task.model)
    model.eval()
    right: Tensor | int = 0
    with torch.no_grad():
        for inputs, targets in task.batches:
            right = right + (model(inputs).argmax(1) == targets).sum()
    return float(right) / task.samples


VARIANTS = (
    Variant("Fabric", "train", False, train),
    Variant("Fabric, tqdm + TensorBoard", "train", True, train_and_log),
    Variant("Fabric, counted by hand", "evaluate", False, evaluate_by_hand),
    Variant("Fabric, torchmetrics", "evaluate", False, evaluate),
)
