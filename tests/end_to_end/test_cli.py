"""The command as a user types it: alone, under torchrun, and pasting what it says to run next."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
class Net(nn.Linear):
    def __init__(self, fail=False):
        super().__init__(6, 2)
        self.fail = fail

    def forward(self, bits):
        if self.fail:
            raise ZeroDivisionError("of the user")
        return super().forward(bits)
"""
PARSING = """
from stratrun import TRANSFORMS

@TRANSFORMS.register_module()
def bits(text):
    return torch.tensor([float(one) for one in reversed(text)])

@TRANSFORMS.register_module()
def parity(scores):
    return int(scores.argmax())
"""
CONFIG = """
model: {type: Net}
loss: cross_entropy
train_dataloader: {dataset: {type: Parity, size: 64}, global_batch_size: 8}
train_cfg: {max_epochs: 3}
optimizer: {type: Adam, lr: 5e-2}
test_dataloader: {dataset: {type: Parity, size: 13}, batch_size: 4}
test_evaluator: {type: Accuracy}
predict_dataloader: {dataset: {type: Parity, size: 13}, batch_size: 4}
randomness: {seed: 0}
"""
WORDS = ["parity.yaml", "--import", "task.py"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    Path("task.py").write_text(TASK)
    Path("parity.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def warm_path(folder: Path, warm: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs start with torch imported. For tests beside those of the same program started cold."""
    monkeypatch.setenv("PATH", str(warm.folder), prepend=os.pathsep)


def stratrun(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["python", "-m", "stratrun", *words], capture_output=True, text=True, check=False)


def paste(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


def line_with(text: str, output: str) -> str:
    [line] = [line for line in output.splitlines() if text in line]
    return line


def test_train_says_how_to_test_and_the_files_are_where_it_says() -> None:
    trained = stratrun("train", *WORDS, "optimizer.lr=0.1")
    assert trained.returncode == 0, trained.stderr
    command = line_with(" next: ", trained.stdout).partition(" next: ")[2]
    assert "optimizer.lr=0.1" in command
    tested = paste(command)
    assert tested.returncode == 0, tested.stderr
    assert "accuracy=1" in tested.stdout
    [config, _] = sorted(Path("work_dirs/parity/runs").glob("*/config.yaml"))
    assert "lr: 0.1" in config.read_text()
    predicted = paste(command.replace("stratrun test", "stratrun predict"))
    assert predicted.returncode == 0, predicted.stderr
    assert "13, one a line, in work_dirs/parity/predictions.jsonl" in predicted.stdout
    rows = [json.loads(row) for row in Path("work_dirs/parity/predictions.jsonl").read_text().splitlines()]
    assert [row.index(max(row)) for row in rows] == [0, 1] * 6 + [0]


def test_ddp_without_torchrun_says_a_command_that_works_and_that_says_the_next() -> None:
    refused = stratrun("train", *WORDS, "strategy=ddp")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    trained = paste(line_with("torchrun --nproc_per_node=2", refused.stderr))
    assert trained.returncode == 0, trained.stderr
    assert "strategy=ddp: as given" in trained.stdout
    tested = paste(line_with(" next: ", trained.stdout).partition(" next: ")[2])
    assert tested.returncode == 0, tested.stderr
    assert "accuracy=1" in tested.stdout


@pytest.mark.usefixtures("warm_path")
def test_the_command_to_run_next_takes_the_best_weights_where_some_are_watched() -> None:
    watched = ["val_dataloader={dataset: {type: Parity, size: 13}, batch_size: 4}", "val_evaluator=Accuracy"]
    best = [
        "default_hooks.checkpoint={save_best: accuracy}",
        "optimizer.lr=10",
        "default_hooks.logger.interval=1",
    ]
    trained = stratrun("train", *WORDS, *watched, *best)
    assert trained.returncode == 0, trained.stderr
    checkpoint = line_with(" best accuracy=", trained.stdout).rpartition(": ")[2]
    assert Path(checkpoint, "COMMITTED").exists()
    command = line_with(" next: ", trained.stdout).partition(" next: ")[2]
    assert f"load_from={checkpoint}" in command
    tested = paste(command)
    assert tested.returncode == 0, tested.stderr


@pytest.mark.usefixtures("warm_path")
def test_raw_inputs_are_predicted_with_the_weights_that_are_named() -> None:
    with Path("task.py").open("a") as task:
        task.write(PARSING)
    trained = stratrun("train", *WORDS, "optimizer.lr=0.1", "loggers=[]")
    assert trained.returncode == 0, trained.stderr
    Path("bits.txt").write_text("".join(f"{number:06b}\n" for number in range(9)))
    words = [*WORDS, "inference_cfg={preprocess: bits, postprocess: parity, batch_size: 4}"]
    files = ["--inputs", "bits.txt", "--out", "o.jsonl"]
    predicted = stratrun("predict", *words, "--checkpoint", "last", *files)
    assert predicted.returncode == 0, predicted.stderr
    assert "9, one a line, in o.jsonl" in predicted.stdout
    rows = [json.loads(row) for row in Path("o.jsonl").read_text().splitlines()]
    assert rows == [{"input": f"bits.txt:{n + 1}", "prediction": n % 2} for n in range(9)]
    beside = stratrun("predict", *words, "--checkpoint", "step-00000024", "--inputs", "bits.txt")
    assert beside.returncode == 0, beside.stderr
    assert Path("work_dirs/parity/predictions.jsonl").read_bytes() == Path("o.jsonl").read_bytes()
    damaged = stratrun("predict", *words, "--checkpoint", "lsat", *files)
    assert damaged.returncode == 2 and "Traceback" not in damaged.stderr
    assert "did you mean the name 'last'" in damaged.stderr


@pytest.mark.usefixtures("warm_path")
def test_a_mistake_that_all_ranks_make_is_told_once() -> None:
    failed = paste("torchrun --nproc_per_node=2 -m stratrun train parity.yaml")
    assert failed.returncode != 0
    assert failed.stderr.count("no datasets entry") + failed.stderr.count("no models entry") == 1
    assert "stratrun: error: " in failed.stderr


@pytest.mark.usefixtures("warm_path")
def test_an_error_of_the_model_keeps_its_traceback() -> None:
    failed = stratrun("train", *WORDS, "model.fail=true")
    assert failed.returncode == 1
    assert "task.py" in failed.stderr and "ZeroDivisionError: of the user" in failed.stderr
    assert "stratrun/engine" not in failed.stderr


def test_an_interrupted_run_exits_130_and_goes_on_with_resume() -> None:
    endless = [sys.executable, "-m", "stratrun", "train", *WORDS, "train_cfg.max_epochs=100000"]
    running = subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    # The second line of results comes after the first checkpoint.
    seen = 0
    while seen < 2:
        seen += "kind=train" in running.stdout.readline()
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate()
    assert running.returncode == 130
    assert errors == "stratrun: interrupted; --resume goes on from the newest checkpoint\n"
    resumed = stratrun("train", *WORDS, "--resume")
    assert "resumed from work_dirs/parity/checkpoints/step-" in resumed.stdout, resumed.stderr
