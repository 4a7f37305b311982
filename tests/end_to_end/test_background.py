"""Training goes on with its exchanges while saves are made beside it, and what is saved is what was."""

import copy
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stratrun import Runner
from stratrun.checkpoint import StoredCheckpoint
from stratrun.hooks import Hook
from stratrun.storage import Folder
from tests.end_to_end.resume_job import differences
from tests.ranks import Ranks

STEPS = 200


class Watch(Hook):
    """Keeps what is to be saved as it is when the save is asked for, and counts saves that go on"""

    def __init__(self) -> None:
        self.states: dict[str, Any] = {}
        self.beside = 0

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self.states[f"step-{runner.iter:08d}"] = copy.deepcopy(checkpoint)

    def after_train_iter(self, runner: Any) -> None:
        # The one before: that of this iteration has yet to begin.
        if runner.last_checkpoint is not None:
            self.beside += not Path(runner.last_checkpoint, "COMMITTED").exists()


def save_each_step(work_dir: str) -> tuple[int, list[str], dict[str, Any]]:
    """Returns how many steps were done beside a save, what is not as it was, and the last weights."""
    torch.manual_seed(0)
    watch, quick = Watch(), Folder.write_blocks

    def slow(self: Folder, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.005)
        quick(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "write_blocks", slow)
        weights = _train(work_dir, {"interval": 1, "by_epoch": False, "keep_last": None}, [watch])
    wrong: list[str] = []
    # What is shared is the main rank's: on the others the running statistics are other ones.
    for name, state in watch.states.items() if os.environ["RANK"] == "0" else ():
        stored = StoredCheckpoint(Folder(work_dir).child(f"checkpoints/{name}")).read(0, 2)
        wrong += [f"{name}{text}" for text in differences(stored.shared, state)]
    assert len(watch.states) == STEPS
    return watch.beside, wrong, weights


def without_saves(work_dir: str) -> dict[str, Any]:
    torch.manual_seed(0)
    return _train(work_dir, None, [])


def _train(work_dir: str, save: Any, hooks: list[Any]) -> dict[str, Any]:
    net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, 4))
    data = TensorDataset(torch.randn(64, 8), torch.arange(64) % 4)
    runner = Runner(
        net,
        loss="cross_entropy",
        work_dir=work_dir,
        train_dataloader={"dataset": data, "global_batch_size": 8},
        train_cfg={"by_epoch": False, "max_iters": STEPS},
        optimizer={"type": "AdamW", "lr": 0.05},
        default_hooks={"checkpoint": save},
        custom_hooks=hooks,
        loggers=(),
        randomness={"seed": 0},
    )
    runner.train()
    found = {name: value.clone() for name, value in net.state_dict().items()}
    runner.close()
    return found


def test_two_hundred_saves_beside_two_hundred_steps_hold_the_state_of_their_step(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    results = two_ranks(save_each_step, str(tmp_path / "saved"))
    truth = two_ranks(without_saves, str(tmp_path / "plain"))
    for rank, (beside, wrong, weights) in enumerate(results):
        assert wrong == []
        assert differences(weights, truth[rank]) == []
        # The test is of nothing unless steps were done meanwhile.
        assert beside > STEPS / 2
