"""Accelerate: its own loop is the user's."""

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm

from peers.task import CLASSES, LEARNING_RATE, LOG_EVERY, Task, Variant


def train(task: Task) -> None:
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=LEARNING_RATE)
    model, optimizer = accelerator.prepare(task.model, optimizer)
    model.train()
    for inputs, targets in task.batches:
        optimizer.zero_grad()
        accelerator.backward(functional.cross_entropy(model(inputs), targets))
        optimizer.step()


def train_and_log(task: Task) -> None:
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=task.folder)
    accelerator.init_trackers("run")
    optimizer = torch.optim.SGD(task.model.parameters(), lr=LEARNING_RATE)
    model, optimizer = accelerator.prepare(task.model, optimizer)
    model.train()
    for step, (inputs, targets) in enumerate(tqdm(task.batches), start=1):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        if step % LOG_EVERY == 0:
            accelerator.log({"loss": loss.item()}, step=step)
    accelerator.end_training()


def evaluate(task: Task) -> float:
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(task.model)
    accuracy = MulticlassAccuracy(CLASSES, average="micro")
    model.eval()
    with torch.no_grad():
        for inputs, targets in task.batches:
            outputs, expected = accelerator.gather_for_metrics((model(inputs), targets))
            accuracy.update(outputs, expected)
    return float(accuracy.compute())


def evaluate_by_hand(task: Task) -> float:
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(task.model)
    model.eval()
    right: Tensor | int = 0
    with torch.no_grad():
        for inputs, targets in task.batches:
            # Without this it would be the bare loop: on one CPU what it prepares is the model itself.
            outputs, expected = accelerator.gather_for_metrics((model(inputs), targets))
            right = right + (outputs.argmax(1) == expected).sum()
    return float(right) / task.samples


VARIANTS = (
    Variant("Accelerate", "train", False, train),
    Variant("Accelerate, tqdm + TensorBoard", "train", True, train_and_log),
    Variant("Accelerate, gathered, counted by hand", "evaluate", False, evaluate_by_hand),
    Variant("Accelerate, gathered, torchmetrics", "evaluate", False, evaluate),
)
