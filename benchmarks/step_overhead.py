"""What a training step costs over a plain PyTorch loop: `python benchmarks/step_overhead.py [pairs]`.

A small MLP, batches ready in memory, one thread, each variant and the plain loop in turn, so that
the ratio of a pair holds although the machine's speed drifts.
"""

import contextlib
import io
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn

from stratrun import Hook, Runner

STEPS = 500
OFF: dict[str, Any] = {"timer": None, "logger": None, "scheduler": None, "checkpoint": None}
VARIANTS: dict[str, dict[str, Any]] = {
    "no hooks, no loggers": {"default_hooks": OFF, "loggers": []},
    "default hooks, no loggers": {"default_hooks": {"checkpoint": None}, "loggers": []},
    "default hooks, console + JSONL + CSV": {"default_hooks": {"checkpoint": None}},
}


class Clock(Hook):
    """Times the loop alone, without what a run does before and after it."""

    priority = 100

    def before_train_epoch(self) -> None:
        self.start = time.perf_counter()

    def after_train_epoch(self) -> None:
        self.seconds = time.perf_counter() - self.start


def problem() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    return model, [(torch.randn(32, 32), torch.randint(0, 10, (32,))) for _ in range(STEPS)]


def plain() -> float:
    """Seconds of the loop that one would write by hand."""
    model, batches = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = nn.CrossEntropyLoss()
    start = time.perf_counter()
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()
    return time.perf_counter() - start


def ours(**options: Any) -> float:
    """Seconds of one epoch, its logging included."""
    (model, batches), clock = problem(), Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        runner = Runner(
            model,
            loss=nn.CrossEntropyLoss(),
            train_dataloader=batches,
            train_cfg={"max_epochs": 1},
            optimizer={"type": "SGD", "lr": 0.01},
            custom_hooks=[clock],
            work_dir=folder,
            **options,
        )
        runner.train()
        runner.close()
    return clock.seconds


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    torch.set_num_threads(1)
    plain()
    print(f"torch {torch.__version__}, {STEPS} steps, median of {pairs} pairs")
    print(f"{'':40}{'us a step':>10}{'plain':>10}{'extra':>10}{'ratio':>10}")
    for name, options in VARIANTS.items():
        found = [(ours(**options), plain()) for _ in range(pairs)]
        mine, bare = (statistics.median(side) / STEPS * 1e6 for side in zip(*found, strict=True))
        ratio = statistics.median(a / b for a, b in found)
        print(f"{name:40}{mine:10.1f}{bare:10.1f}{mine - bare:10.1f}{ratio:10.2f}")


if __name__ == "__main__":
    main()
