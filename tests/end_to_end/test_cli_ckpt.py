"""What a run left behind, looked after by the command: listed, shown, verified, exported, pruned."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stratrun.checkpoint import StoredCheckpoint
from stratrun.cli.main import run
from stratrun.storage import Folder
from tests.warm import Warm

pytestmark = pytest.mark.timeout(240)

TASK = """
import torch
from torch import nn
from stratrun import DATASETS, MODELS

@DATASETS.register_module()
class Parity(torch.utils.data.TensorDataset):
    def __init__(self, size):
        bits = torch.arange(size)[:, None] >> torch.arange(6) & 1
        super().__init__(bits.float(), bits[:, 0])

@MODELS.register_module()
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
"""
CONFIG = """
model: {type: Net}
loss: cross_entropy
train_dataloader: {dataset: {type: Parity, size: 64}, global_batch_size: 8}
train_cfg: {max_epochs: 3}
optimizer: {type: Adam, lr: 5e-2}
val_dataloader: {dataset: {type: Parity, size: 13}, batch_size: 4}
val_evaluator: {type: Accuracy}
test_dataloader: {dataset: {type: Parity, size: 13}, batch_size: 4}
test_evaluator: {type: Accuracy}
default_hooks: {checkpoint: {save_best: accuracy, keep_last: null}}
custom_hooks: [{type: EMAHook, decay: 0.5}]
randomness: {seed: 0}
"""
WORDS = ["parity.yaml", "--import", "task.py"]
RUN = "work_dirs/parity"


def stratrun(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["python", "-m", "stratrun", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def done(*words: str) -> str:
    finished = stratrun(*words)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def accuracy(said: str) -> float:
    return float(next(word for word in said.split() if word.startswith("accuracy="))[9:])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, warm: Warm, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(warm.folder), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    Path("task.py").write_text(TASK)
    Path("parity.yaml").write_text(CONFIG)
    return tmp_path


def test_from_a_run_to_a_file_of_weights_and_a_tidy_folder(capsys: pytest.CaptureFixture[str]) -> None:
    def ckpt(*words: str) -> str:
        capsys.readouterr()
        assert run(["ckpt", *words]) == 0
        return capsys.readouterr().out

    done("train", *WORDS)
    listed = json.loads(done("ckpt", "ls", RUN, "--json"))["checkpoints"]
    assert [(one["step"], one["epoch"], one["ranks"]) for one in listed] == [
        (8, 1, 1),
        (16, 2, 1),
        (24, 3, 1),
    ]
    assert [one["state"] for one in listed] == ["committed"] * 3
    assert "last" in listed[-1]["marks"]
    assert sum("best" in one["marks"] for one in listed) == 1
    assert 0 <= listed[-1]["metrics"]["accuracy"] <= 1

    shown = ckpt("show", RUN)
    assert "strategy=single" in shown and "hooks/EMAHook/averages/0.weight" in shown
    assert ckpt("verify", RUN).splitlines()[-1].endswith("step-00000024")

    ckpt("export", RUN, "-o", "plain.safetensors")
    ckpt("export", RUN, "-o", "ema.safetensors", "--weights", "ema")
    state = StoredCheckpoint(Folder(f"{RUN}/checkpoints/step-00000024")).read().shared
    plain, ema = load_file("plain.safetensors"), load_file("ema.safetensors")
    averages = state["hooks"]["EMAHook"]["averages"]
    assert plain.keys() == ema.keys() == state["model"].keys()
    assert all(torch.equal(plain[name], state["model"][name]) for name in plain)
    assert all(torch.equal(ema[name], averages.get(name, state["model"][name])) for name in ema)
    assert any(not torch.equal(plain[name], ema[name]) for name in plain)

    # The run validated with the averages, and so does whoever has nothing but the file.
    said = done("test", *WORDS, "load_from=ema.safetensors", "custom_hooks=[]", "work_dir=elsewhere")
    assert accuracy(said) == pytest.approx(listed[-1]["metrics"]["accuracy"], abs=1e-3)

    assert "--yes deletes" in ckpt("prune", RUN, "--keep-last", "1", "--keep-best", "0")
    ckpt("prune", RUN, "--keep-last", "1", "--keep-best", "0", "--yes")
    assert os.listdir(f"{RUN}/checkpoints") == ["step-00000024"]
    assert "resumed from" in done("train", *WORDS, "--resume", "train_cfg.max_epochs=4")
