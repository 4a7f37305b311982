"""A strategy in whose forward pass ranks wait for each other, and numbers to evaluate under it."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stratrun import Runner
from stratrun.evaluation import BaseMetric
from stratrun.strategies import DDPStrategy
from tests.problems import QUIET


class Waiting(DDPStrategy):
    """Each forward pass is an exchange, in which ranks also find out whether all make the same step."""

    name = "waiting"
    collective_forward = True

    def __init__(self, ranks_per_batch: int = 1) -> None:
        super().__init__()
        self.ranks_per_batch = self.multiple_of = ranks_per_batch
        self.passes = 0

    def place(self, module: nn.Module, device: torch.device, **options: Any) -> None:
        super().place(module, device, **options)
        module.register_forward_pre_hook(self._meet)

    def _meet(self, module: nn.Module, inputs: tuple[Any, str]) -> None:
        self.passes += 1
        modes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(modes, inputs[1])
        assert set(modes) == {inputs[1]}, modes


class Doubling(nn.Module):
    """Gives back the numbers it is given, and their doubles; `seen` is all that it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Parameter(torch.full((), 2.0))
        self.seen: list[list[int]] = []

    def train_step(self, batch: Tensor) -> Tensor:
        return (self.two * batch).mean()

    def val_step(self, batch: Tensor) -> dict[str, Tensor]:
        self.seen.append(batch.tolist())
        return {"number": batch, "double": self.two * batch}

    def predict_step(self, batch: Tensor) -> Tensor:
        return self.two * batch


class InOrder(BaseMetric):
    """A number that changes when samples are left out, repeated or swapped, and how many there were."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        assert torch.equal(data_samples["double"], 2 * data_batch)
        self.results += data_samples["number"].tolist()

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        chained = 0
        for number in results:
            chained = (chained * 31 + number + 1) % 1_000_003
        return {"chained": chained, "counted": len(results), "sum": sum(results)}


def chained(samples: int) -> dict[str, float]:
    return InOrder().compute_metrics(list(range(samples)))


def run(model: nn.Module | None = None, **options: Any) -> Runner:
    form = {"val_evaluator": InOrder(), "strategy": Waiting(), **QUIET, **options}
    return Runner(model or Doubling(), **form)
