"""What everyone is given to do, and the clock that times it the same way for all."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

BLOCK = 100
"""Steps that are timed as one. Log points, every 50 steps, fall into each of them alike."""
LOG_EVERY = 50
CLASSES = 10
LEARNING_RATE = 0.01
Batch = tuple[Tensor, Tensor]


class Clock:
    """Reads the time each so many forward passes, so that nobody's loop needs to be touched."""

    __slots__ = ("block", "count", "marks")

    def __init__(self, block: int = BLOCK) -> None:
        self.block = block
        self.count = 0
        self.marks: list[float] = []

    def tick(self) -> None:
        if self.count % self.block == 0:
            self.marks.append(perf_counter())
        self.count += 1

    def per_step(self) -> list[float]:
        """Microseconds a step of each block but the first, in which things are still made."""
        pairs = zip(self.marks[1:], self.marks[2:], strict=False)
        return [(after - before) / self.block * 1e6 for before, after in pairs]


class Net(nn.Module):
    """An MLP of 32-64-10."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, CLASSES))
        self.clock = clock or Clock()

    def forward(self, inputs: Tensor) -> Tensor:
        self.clock.tick()
        outputs: Tensor = self.layers(inputs)
        return outputs


class ConvNet(nn.Module):
    """Two convolutions and a linear layer, for images of 3 x 32 x 32."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 16, CLASSES),
        )
        self.clock = clock

    def forward(self, inputs: Tensor) -> Tensor:
        self.clock.tick()
        outputs: Tensor = self.layers(inputs)
        return outputs


def world_size() -> int:
    """How many processes a launcher has started for this."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is: each has data of its own."""
    return int(os.environ.get("RANK", "0"))


@dataclass(slots=True)
class Task:
    """A model, batches of 32 that are ready in memory, and a folder to write to.

    Training takes one step for each batch, with plain SGD and cross entropy, and leaves the weights in
    `model`. Evaluation counts right answers.
    """

    model: nn.Module
    batches: list[Batch]
    folder: str
    clock: Clock

    @classmethod
    def make(cls, folder: str, blocks: int) -> "Task":
        """A new model with the weights and data that every other task has; `blocks` are timed."""
        torch.manual_seed(0)
        clock = Clock()
        model = Net(clock)
        torch.manual_seed(rank())
        # One block to warm up, and one step more, whose forward pass ends the last block.
        steps = BLOCK * (blocks + 1) + 1
        batches = [(torch.randn(32, 32), torch.randint(0, CLASSES, (32,))) for _ in range(steps)]
        return cls(model, batches, folder, clock)

    @classmethod
    def of_images(cls, folder: str, blocks: int) -> "Task":
        """The same with images and a small CNN, in blocks of ten steps."""
        torch.manual_seed(0)
        clock = Clock(block=10)
        model = ConvNet(clock)
        torch.manual_seed(rank())
        steps = clock.block * (blocks + 1) + 1
        images = [torch.randn(32, 3, 32, 32) for _ in range(min(steps, 20))]
        batches = [(images[i % 20], torch.randint(0, CLASSES, (32,))) for i in range(steps)]
        return cls(model, batches, folder, clock)

    @property
    def samples(self) -> int:
        return sum(len(targets) for _, targets in self.batches)


class Variant(NamedTuple):
    """One way to do the task with one framework."""

    name: str
    job: Literal["train", "evaluate"]
    logs: bool
    """Whether it reports on the way: progress and loss every `LOG_EVERY` steps, or metrics."""
    run: Callable[[Task], Any]
    """Does it. For `evaluate` it returns the share of right answers."""
    agrees: bool = True
    """Whether it comes to what the bare loop comes to; checked before anything is timed."""
