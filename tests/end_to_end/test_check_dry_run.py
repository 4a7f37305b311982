"""``stratrun check --dry-run``: a batch of each job in earnest, of which nothing is left."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.warm import Warm

PARTS = """\
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stratrun import DATASETS, MODELS


@DATASETS.register_module()
def Points(samples):
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x.sum(1) > 0).long())


@MODELS.register_module()
class Net(nn.Module):
    def __init__(self, width=16, out=2):
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(16, out)

    def forward(self, x):
        return self.last(self.first(x).relu())
"""
CONFIG = """\
model: {type: Net}
loss: cross_entropy
train_dataloader: {dataset: {type: Points, samples: 64}, batch_size: 8}
train_cfg: {by_epoch: true, max_epochs: 3}
optimizer: {type: AdamW, lr: 1e-2}
val_dataloader: {dataset: {type: Points, samples: 32}, batch_size: 8}
val_evaluator: {type: Accuracy}
test_dataloader: {dataset: {type: Points, samples: 32}, batch_size: 8}
test_evaluator: {type: Accuracy}
accelerator: cpu
"""
WEIGHTS = (6 * 16 + 16 + 16 * 2 + 2) * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


def checked(folder: Path, warm: Warm, *words: str) -> tuple[int, dict[str, Any]]:
    command = [
        warm.folder / "stratrun",
        "check",
        "run.yaml",
        "--import",
        "parts.py",
        "--dry-run",
        "--json",
        *words,
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_batch_of_each_job_and_a_checkpoint_leave_nothing_behind(
    ranks: int, folder: Path, warm: Warm
) -> None:
    code, told = checked(folder, warm, "--world-size", str(ranks), "resume=auto")
    trial = told["dry_run"]
    assert (code, told["problems"], trial["failed"]) == (0, [], "")
    assert trial["jobs"] == ["train", "test"] and trial["saved"]
    assert trial["memory"]["weights"] == WEIGHTS
    assert trial["memory"]["optimizer"] >= 2 * WEIGHTS
    assert left(folder) == ["parts.py", "run.yaml"]


@pytest.mark.timeout(120)
def test_what_only_a_batch_can_tell_is_told_as_the_job_would(folder: Path, warm: Warm) -> None:
    code, told = checked(folder, warm, "model.width=3", "--meta")
    assert code == 1 and "peak" not in told["dry_run"]["memory"] and told["dry_run"]["failed"]
    code, told = checked(folder, warm, "model.out=1", "resume=true")
    assert code == 1
    assert "Target" in told["dry_run"]["failed"] and "out of bounds" in told["dry_run"]["failed"]
    assert left(folder) == ["parts.py", "run.yaml"]


@pytest.mark.timeout(120)
def test_a_place_that_cannot_be_written_is_found_out(folder: Path, warm: Warm) -> None:
    (folder / "taken").write_text("")
    code, told = checked(folder, warm, "work_dir=taken/run")
    assert code == 2
    assert any("cannot be written" in one["message"] for one in told["problems"])


@pytest.mark.timeout(120)
def test_with_meta_the_step_is_gone_through_and_no_data_but_a_batch_is_read(folder: Path, warm: Warm) -> None:
    code, told = checked(folder, warm, "--meta")
    assert (code, told["dry_run"]["jobs"], told["dry_run"]["saved"]) == (0, [], False)
    assert told["dry_run"]["memory"]["peak"] > WEIGHTS


@pytest.mark.timeout(120)
def test_a_config_that_is_wrong_is_not_tried(folder: Path, warm: Warm) -> None:
    code, told = checked(folder, warm, "optimizer.lrr=1")
    assert (code, told["dry_run"], len(told["problems"])) == (2, None, 1)
