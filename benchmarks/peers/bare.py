"""The loops that one would write by hand."""

import torch
from tensorboardX import SummaryWriter
from torch import Tensor
from torch.nn import functional

from peers.task import LEARNING_RATE, LOG_EVERY, Task, Variant


def train(task: Task) -> None:
    model = task.model
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for inputs, targets in task.batches:
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def train_and_log(task: Task) -> None:
    """With what one adds to see how it goes: a line and a TensorBoard event now and then."""
    model = task.model
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    writer = SummaryWriter(task.folder)
    model.train()
    for step, (inputs, targets) in enumerate(task.batches, start=1):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        if step % LOG_EVERY == 0:
            value = loss.item()
            print(f"step {step}: loss {value:.4f}")
            writer.add_scalar("loss", value, step)
    writer.close()


def evaluate(task: Task) -> float:
    model = task.model
    model.eval()
    right: Tensor | int = 0
    with torch.no_grad():
        for inputs, targets in task.batches:
            right = right + (model(inputs).argmax(1) == targets).sum()
    return float(right) / task.samples


VARIANTS = (
    Variant("bare loop", "train", False, train),
    Variant("bare loop, logging by hand", "train", True, train_and_log),
    Variant("bare loop", "evaluate", False, evaluate),
)
