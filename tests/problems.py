"""Tiny problems for tests of whole runs, and the shortest way to run them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stratrun import Runner

CLASSES = 3
FEATURES = 5

QUIET: dict[str, Any] = {"loggers": (), "default_hooks": {"checkpoint": None}}
"""Arguments of a run that only its weights or metrics are wanted of."""


def points(samples: int, seed: int = 0) -> TensorDataset:
    """Points and their classes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, FEATURES, generator=generator)
    return TensorDataset(inputs, torch.randint(CLASSES, (samples,), generator=generator))


def perceptron(seed: int = 0) -> nn.Module:
    """A classifier of `points`, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def trained(model: nn.Module, **options: Any) -> Runner:
    """Train without files, logs and checkpoints; returns the runner."""
    runner = Runner(model, **{**QUIET, **options})
    runner.train()
    runner.close()
    return runner
