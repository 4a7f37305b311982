"""A range test and a training, or a search for parts, that may be killed: ``find_lr_job.py WORK_DIR AT``."""

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from stratrun import Runner
from stratrun.hooks import EMAHook

ITERS = 15


class Mortal(TensorDataset):
    """Kills the process when it reads a sample for the so manieth time."""

    def __init__(self, at: int) -> None:
        torch.manual_seed(0)
        inputs = torch.randn(52, 5)
        super().__init__(inputs, inputs[:, :3].argmax(1))
        self.left = at

    def __getitem__(self, index: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def main(work_dir: str, at: int, find: bool) -> None:
    data = Mortal(at)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    runner = Runner(
        model,
        work_dir=work_dir,
        train_dataloader={"dataset": data, "global_batch_size": 8},
        train_cfg={"max_epochs": 3},
        optimizer={"type": "AdamW", "lr": 0.01},
        param_scheduler={"type": "CosineAnnealingLR", "T_max": 3},
        loss="cross_entropy",
        loggers=["jsonl"],
        default_hooks={"checkpoint": {"interval": 2, "by_epoch": False}},
        custom_hooks=[EMAHook(decay=0.9)],
        randomness={"seed": 1},
        resume="auto",
    )
    if find:
        found = runner.find_lr(iters=ITERS)
        assert len(found.losses) == ITERS, found.ended
    before = sorted(path.name for path in Path(work_dir).glob("*")) if Path(work_dir).exists() else []
    runner.train()
    bits = b"".join(value.cpu().numpy().tobytes() for value in model.state_dict().values())
    print(hashlib.sha256(bits).hexdigest(), before)
    runner.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "find")
