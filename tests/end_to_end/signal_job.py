"""A script as a user writes it, of which one process gets a signal at a moment that it is told.

Whatever could differ between a run and one that was ended and gone on with does so here: dropout, a shuffled
order, momentum, accumulation over two batches, validation with a metric, and slow checkpoints.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from stratrun import Runner
from stratrun.control import exchange
from stratrun.hooks import Hook

ITERATIONS, PER_EPOCH, SAVE_EVERY = 24, 8, 5
_fsync = os.fsync


def strike(place: str, moment: str) -> None:
    """Send the signal, if it is this moment at which it is to come, once in all."""
    wanted, _, number = os.environ.get("STRIKE", "").partition(":")
    struck = Path(place, "struck")
    mine = os.environ.get("RANK", "0") == os.environ.get("STRUCK_RANK", "1")
    if wanted == moment and mine and not struck.exists():
        struck.touch()
        os.kill(os.getpid(), int(number or signal.SIGTERM))


class Points(Dataset[Any]):
    """Some points on a circle, each as slow to read as it is asked for."""

    def __init__(self, place: str, size: int, moment: str = "", pause: float = 0.0) -> None:
        self.place, self.size, self.moment, self.pause = place, size, moment, pause

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.pause)
        if self.moment and index == 11:
            strike(self.place, self.moment)
        angle = torch.tensor(index * 0.37)
        return torch.stack([angle.sin(), angle.cos(), torch.rand(()) / 10]), torch.tensor(index % 2)


class Net(nn.Module):
    def __init__(self, place: str) -> None:
        super().__init__()
        strike(place, "building")
        self.place = place
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2))

    def train_step(self, batch: Any) -> Tensor:
        strike(self.place, f"step {len(STEPS)}")
        STEPS.append(0)
        if len(STEPS) == int(os.environ.get("STALL", "0")):
            Path(self.place, f"stalls-{os.environ.get('RANK', '0')}").touch()
            time.sleep(float(os.environ.get("STALLS_FOR", "60")))
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def val_step(self, batch: Any) -> Any:
        if not self.training:
            torch.rand(())  # as a model may that samples
            strike(self.place, "validation")
            time.sleep(float(os.environ.get("VAL_PAUSE", "0")))
        return {"preds": self.net(batch[0]).argmax(1), "target": batch[1]}


STEPS: list[int] = []


class Moments(Hook):
    """Moments that hooks see."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.validated: list[int] = []
        self.saved: list[int] = []

    def before_save_checkpoint(self, runner: Any) -> None:
        self.saved.append(runner.iter)
        if runner.iter:
            strike(self.place, "saving")

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == ITERATIONS:
            strike(self.place, "last")
        if runner.iter == 4 and os.environ.get("ASKS") == os.environ.get("RANK", "0"):
            runner.request("save")
            runner.request("validate", "to see")

    def after_val(self, runner: Any) -> None:
        self.validated.append(runner.iter)


def slow_fsync(file: int) -> None:
    time.sleep(0.01)
    _fsync(file)


class Whole(DataLoader[Any]):
    """A loader that is not taken apart, for what it does while it is iterated."""

    def __iter__(self) -> Any:
        return super().__iter__()


def loader_of(data: Dataset[Any]) -> Any:
    if "READY" in os.environ:
        return Whole(data, batch_size=4, num_workers=1)
    workers = int(os.environ.get("WORKERS", "0"))
    return {"dataset": data, "global_batch_size": 4, "num_workers": workers}


def main(place: str, name: str, **options: Any) -> None:
    os.fsync = slow_fsync
    exchange.EVERY = float(os.environ.get("EVERY", exchange.EVERY))
    torch.manual_seed(0)
    moments = Moments(place)
    pause = float(os.environ.get("PAUSE", "0"))
    work_dir = str(Path(place, "work"))
    runner = Runner(
        lambda: Net(place),
        work_dir=work_dir,
        train_dataloader=loader_of(Points(place, 4 * PER_EPOCH, "data", pause)),
        val_dataloader={"dataset": Points(place, 21), "global_batch_size": 2},
        val_evaluator={"type": "Accuracy"},
        train_cfg={"by_epoch": True, "max_epochs": ITERATIONS // PER_EPOCH, "accumulate": 2},
        optimizer={"type": "SGD", "lr": 0.2, "momentum": 0.9},
        default_hooks={
            "checkpoint": {"interval": SAVE_EVERY, "by_epoch": False, "save_on": "end"},
            "logger": {"interval": 1},
        },
        custom_hooks=[moments],
        loggers=["jsonl"],
        randomness={"seed": 3},
        resume="auto",
        **options,
    )
    told = Path(place, f"{name}-{os.environ.get('RANK', '0')}.json")
    try:
        runner.train()
    finally:
        counts = {"iter": runner.iter, "validated": moments.validated, "saved": moments.saved}
        told.write_text(json.dumps(counts))
    if os.environ.get("RANK", "0") == "0":
        torch.save(runner.model.state_dict(), Path(place, "weights.pt"))
    runner.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3] if len(sys.argv) > 3 else "{}"))
