"""``stratrun verify-resume`` on jobs that resume exactly, and on jobs that do not and have to be told why."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stratrun.cli.main import run
from stratrun.cli.verify_resume.differences import findings, same
from stratrun.cli.verify_resume.outcome import Outcome, RowKey
from stratrun.cli.verify_resume.verdict import different
from tests.warm import Warm

pytestmark = pytest.mark.timeout(300)

TASK = """
import atexit, os, random
import numpy, torch
from torch import nn
from stratrun import DATASETS, HOOKS, Hook, MODELS

@DATASETS.register_module()
class Parity(torch.utils.data.Dataset):
    def __init__(self, size, noise=False, own=False):
        self.bits = (torch.arange(size)[:, None] >> torch.arange(6) & 1).float()
        self.noise = noise
        self.own = torch.Generator().manual_seed(3) if own else None

    def __len__(self):
        return len(self.bits)

    def __getitem__(self, index):
        bits = self.bits[index]
        if self.noise or self.own:
            bits = bits + 0.1 * torch.randn(6, generator=self.own)
        if self.noise:
            bits = bits * random.random() + float(numpy.random.standard_normal())
        return bits, int(index % 2)

@MODELS.register_module()
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))

@HOOKS.register_module()
class Diary(Hook):
    def before_train(self, runner):
        self.write(f"begin {runner.iter}")
        atexit.register(self.write, "end")

    def after_train_iter(self, runner):
        self.write(str(runner.iter))

    def write(self, text):
        with open("diary.txt", "a") as stream:
            stream.write(text + "\\n")

@HOOKS.register_module()
class Decay(Hook):
    def __init__(self):
        self.factor = 1.0

    def after_train_iter(self, runner):
        self.factor *= 0.9
        with torch.no_grad():
            runner.model[3].bias.mul_(self.factor)

@HOOKS.register_module()
class Counter(Hook):
    def __init__(self):
        self.seen = 0

    def after_train_iter(self, runner):
        self.seen += 1
"""
CONFIG = """
model: {type: Net}
loss: cross_entropy
work_dir: precious
train_dataloader: {dataset: {type: Parity, size: 44, noise: true}, global_batch_size: 8}
val_dataloader: {dataset: {type: Parity, size: 12, noise: true}, batch_size: 8}
val_evaluator: {type: Accuracy}
train_cfg: {max_epochs: 3, accumulate: 2}
optimizer: {type: AdamW, lr: 1e-2}
param_scheduler: {type: CosineAnnealingLR, T_max: 9, by_epoch: false}
default_hooks: {checkpoint: {save_best: accuracy}}
custom_hooks: [{type: EMAHook, decay: 0.9, warmup: true}]
"""
BY_ITERATION = CONFIG.replace("max_epochs: 3", "by_epoch: false, val_interval: 2, max_iters: 5")
WORDS = ["parity.yaml", "--import", "task.py"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, warm: Warm, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(warm.folder), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    Path("task.py").write_text(TASK)
    Path("parity.yaml").write_text(CONFIG)
    Path("by_iteration.yaml").write_text(BY_ITERATION)
    return tmp_path


def verify_resume(
    *words: str, config: str = "parity.yaml", python: str = "python"
) -> subprocess.CompletedProcess[str]:
    """By a python that starts warm, and so do the trainings that it starts, unless another is given."""
    command = [python, "-m", "stratrun", "verify-resume", config, "--import", "task.py", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_exact_job_is_killed_and_found_equal_and_leaves_nothing_behind() -> None:
    hooks = "custom_hooks=[{type: Diary}, {type: EMAHook, decay: 0.9}, {type: Counter}]"
    # Six batches an epoch: killed in the second epoch, in the middle of a window.
    done = verify_resume(hooks, "--iters", "14", "--at", "7", "train_dataloader.num_workers=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal to the bit: 14 iterations, and the same killed and resumed from iteration 7" in done.stdout
    for area in ("weights: 9 tensors", "optimizer state: ", "generators: 3 values", "logged: ", "metrics: "):
        assert area in done.stdout
    # Lost, and without effect: worth a word, and no failure.
    assert "it has changed nothing so far" in done.stdout
    assert "hook Counter.seen is 14 uninterrupted and 7 resumed" in done.stdout
    diary = Path("diary.txt").read_text().split("\n")[:-1]
    whole, killed, resumed = (
        ["begin 0", *map(str, range(1, 15)), "end"],
        ["begin 0", *map(str, range(1, 9))],
        ["begin 7", *map(str, range(8, 15)), "end"],
    )
    assert diary == whole + killed + resumed
    assert not Path("precious").exists() and not Path("work_dirs").exists()


def test_two_processes_that_hold_a_part_of_the_model_each_and_count_iterations_are_equal_too() -> None:
    small = ["--iters", "3", "val_dataloader=null", "val_evaluator=null", "default_hooks.checkpoint={}"]
    done = verify_resume("--nproc", "2", "strategy=fsdp", *small, config="by_iteration.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal to the bit: 3 iterations on 2 processes, and the same killed and resumed" in done.stdout
    assert "generators: 6 values" in done.stdout


def test_a_hook_whose_state_is_lost_is_named() -> None:
    done = verify_resume("custom_hooks=[{type: Decay}]")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the run resumed from iteration 3 is not the uninterrupted one" in done.stdout
    assert "weights: " in done.stdout and "3.bias by up to 0.0" in done.stdout
    # The accuracy may be the same all the same, and on some machines is.
    assert re.search(r"logged: [56] of 10 rows not equal\n    iteration 5 \(train\): loss 0\.", done.stdout)
    assert "hook Decay.factor is 0.43" in done.stdout and " uninterrupted and 0.59" in done.stdout
    assert "return it from the hook's state_dict" in done.stdout
    assert "two uninterrupted runs are equal, so something is lost at resuming" in done.stdout
    assert "\nequal: counters, schedules, hook states, data position, " in done.stdout


def test_a_data_set_with_a_generator_of_its_own_is_named() -> None:
    data = "train_dataloader.dataset={noise: false, own: true}"
    done = verify_resume(data, "custom_hooks=[{type: Counter}]")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "training data Parity.own is a torch.Generator in state " in done.stdout
    assert "draw from the generator of torch" in done.stdout


def test_a_job_that_fails_or_ends_too_early_is_reported_as_itself() -> None:
    failed = verify_resume("optimizer.type=AdamWW", python=sys.executable)
    assert failed.returncode == 2
    assert "did you mean 'AdamW'" in failed.stderr and "nothing was compared" in failed.stdout
    early = verify_resume("--at", "6", config="by_iteration.yaml")
    assert early.returncode == 2
    assert (
        "training ends after iteration 5, and is to be killed after a checkpoint of iteration 6"
        in early.stderr
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--iters", "1"], "--iters 1: to be killed in between, a run needs 2 or more"),
        (["--at", "8"], "--at 8: must be at least 1, and less than the 8 of --iters"),
        (["--nproc", "0"], "--nproc 0: must be at least 1"),
        (["--at", "soon"], "argument --at: invalid int value: 'soon'"),
    ],
)
def test_numbers_that_make_no_trial_are_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify-resume", *WORDS, *words]) == 2
    assert told in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; "
        "from stratrun.cli.main import run; run(['verify-resume', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--nproc P" in done.stdout, done.stderr


def outcome(**weights: torch.Tensor) -> Outcome:
    return Outcome(8, {"weights": dict(weights)}, {})


def test_values_are_the_same_only_to_the_bit() -> None:
    nan = float("nan")
    assert same([nan, {"a": torch.tensor([nan, 1.0])}], [nan, {"a": torch.tensor([nan, 1.0])}])
    assert not same(0.0, -0.0) and not same(1, 1.0) and not same(True, 1)
    assert not same(torch.tensor(0.0), torch.tensor(-0.0))
    assert not same(torch.zeros(2), torch.zeros(2, 1)) and not same(torch.zeros(2), torch.zeros(2).double())
    assert not same({"a": 1, "b": 2}, {"b": 2, "a": 1}) and not same([1], [1, 2])


def test_the_largest_difference_comes_first_with_how_many_numbers_it_is_in() -> None:
    one = outcome(small=torch.zeros(3), large=torch.zeros(2, 2), right=torch.ones(1), lost=torch.ones(1))
    other = outcome(
        small=torch.tensor([0.0, 0.5, 0.25]),
        large=torch.tensor([[0.0, 0.0], [0.0, 2.0]]),
        right=torch.ones(1),
    )
    [weights, logged] = findings(one, other, 4)
    assert weights.differing == (
        "lost is there in the uninterrupted run alone",
        "large by up to 2 in 1 of 4 numbers",
        "small by up to 0.5 in 2 of 3 numbers",
    )
    assert not logged.differing


def test_rows_before_the_kill_may_be_missing_and_later_ones_may_not() -> None:
    rows: dict[RowKey, dict[str, Any]] = {
        (i, "train", ("iter", "loss")): {"iter": i, "loss": i / 2} for i in range(1, 6)
    }
    keys = list(rows)
    one = Outcome(5, {}, rows)
    assert not findings(one, Outcome(5, {}, {key: rows[key] for key in keys[3:]}), 3)[0].differing
    wrong = {**{key: rows[key] for key in keys[3:4]}, keys[0]: {"iter": 1, "loss": 9.0}}
    assert findings(one, Outcome(5, {}, wrong), 3)[0].differing == (
        "iteration 1 (train): loss 0.5 and 9.0",
        "iteration 5 (train) has iter, loss in the uninterrupted run alone",
    )
    assert findings(one, Outcome(4, {}, rows), 3)[0].differing == ("ended after 5 and 4",)


def test_a_job_that_never_comes_out_twice_the_same_is_told_so() -> None:
    found = findings(outcome(a=torch.zeros(1)), outcome(a=torch.ones(1)), 3)
    text = different(found, [], 3, repeatable=False)
    assert "two uninterrupted runs differ as well" in text and "randomness.deterministic=true" in text


def test_it_starts_no_processes_within_those_of_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert run(["verify-resume", *WORDS]) == 2
    assert "with --nproc P" in capsys.readouterr().err
    assert os.environ["RANK"] == "0"
