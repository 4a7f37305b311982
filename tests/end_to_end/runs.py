"""Short runs on points in the plane, for tests that change one thing about them."""

from typing import Any

from torch import nn

from stratrun import Runner
from tests.problems import QUIET, points

SAMPLES, GLOBAL_BATCH = 22, 4


def run(model: nn.Module, work_dir: str, **options: Any) -> Runner:
    form: dict[str, Any] = {
        "train_dataloader": {"dataset": points(SAMPLES), "global_batch_size": GLOBAL_BATCH, "shuffle": False},
        "train_cfg": {"max_epochs": 2},
        "optimizer": {"type": "SGD", "lr": 0.3},
        "work_dir": work_dir,
        **QUIET,
    }
    runner = Runner(model, **{**form, **options})
    runner.train()
    return runner
