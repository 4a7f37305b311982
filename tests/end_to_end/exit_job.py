"""A script as a user writes it: it trains, without our command line, and ends in the way that it is told.

The disk is slow, so that the last save is still under way when training is done with it.
"""

import os
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from stratrun import Runner
from stratrun.hooks import Hook

ITERATIONS, LEFT_AT = 12, 7
_fsync = os.fsync


def slow_fsync(file: int) -> None:
    time.sleep(0.02)
    _fsync(file)


class Leave(Hook):
    """Leaves the run in its middle, by an exit or by an error."""

    priority = 100

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == LEFT_AT:
            raise self.error


def main(work_dir: str, way: str) -> None:
    torch.manual_seed(0)
    hooks = {"exit within": SystemExit(3), "error within": ValueError("spoiled")}
    runner = Runner(
        nn.Linear(6, 2),
        loss="cross_entropy",
        work_dir=work_dir,
        train_dataloader={
            "dataset": TensorDataset(torch.randn(64, 6), torch.arange(64) % 2),
            "global_batch_size": 4,
            "num_workers": 2,
        },
        train_cfg={"by_epoch": False, "max_iters": ITERATIONS},
        optimizer={"type": "AdamW", "lr": 0.1},
        default_hooks={"checkpoint": {"interval": LEFT_AT, "by_epoch": False}},
        custom_hooks=[Leave(hooks[way])] if way in hooks else [],
        loggers=["jsonl"],
    )
    runner.train()
    if way == "closed":
        runner.close()
    elif way == "exit":
        sys.exit(4)
    elif way == "error":
        raise ValueError("late")


if __name__ == "__main__":
    os.fsync = slow_fsync
    main(*sys.argv[1:])
