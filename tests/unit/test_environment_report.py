"""What a run runs on: what is told, what is hidden, what is amiss, and when it is written."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import stratrun
from stratrun import Runner
from stratrun.environment import EnvironmentReport, environment_report, faults, machine, packages
from stratrun.environment import report as reporting
from stratrun.hooks import Hook
from stratrun.report.history import read_history
from tests.problems import perceptron, points
from tests.ranks import Ranks

Parts = dict[str, dict[str, Any]]


def sound(**changes: Any) -> Parts:
    """Parts of an environment without a fault, but for the changes."""
    parts: Parts = {
        "torch": {
            "version": "2.13.0+cu130",
            "cuda": "13.0",
            "hip": None,
            "threads": 4,
            "built_for": ["sm_90"],
        },
        "machine": {"cores_usable": 8.0, "shared_memory": 16.0, "disk_free": 90.0},
        "accelerators": {
            "cuda": True,
            "nodes": ["/dev/nvidia0"],
            "cuda:0": {"name": "H100", "capability": "9.0"},
        },
        "packages": {},
    }
    for name, values in changes.items():
        parts[name].update(values)
    return parts


def test_the_report_tells_of_each_part_and_is_plain_json() -> None:
    report = environment_report()
    told = json.loads(report.to_json())
    assert list(told) == [*reporting._PARTS, "faults"]
    assert not any("unknown" in part for part in report.parts.values())
    assert told["torch"]["version"] == torch.__version__
    assert told["stratrun"]["version"] == stratrun.__version__
    assert told["packages"]["safetensors"]
    text = str(report)
    assert all(f"\n{name}\n" in f"\n{text}" for name in told) and torch.__version__ in text


def test_secrets_are_not_in_it_and_variables_that_matter_are(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "NCCL_DEBUG": "INFO",
        "TORCH_NCCL_BLOCKING_WAIT": "1",
        "SLURM_JOB_ID": "17",
        "WORLD_SIZE": "8",
        "WANDB_API_KEY": "f00dcafe" * 5,
        "AWS_SECRET_ACCESS_KEY": "tops" * 10,
        "HF_TOKEN": "hf_" + "a1" * 17,
        "MLFLOW_TRACKING_URI": "https://me:hunter2@host/x",
        "UNRELATED": "unrelated",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    report = environment_report()
    found = report.parts["variables"]
    for name in ("NCCL_DEBUG", "TORCH_NCCL_BLOCKING_WAIT", "SLURM_JOB_ID", "WORLD_SIZE"):
        assert found[name] == given[name]
    text = str(report) + report.to_json()
    for secret in ("f00dcafe", "topstops", "a1a1", "hunter2", "unrelated"):
        assert secret not in text
    assert found["WANDB_API_KEY"] == "***"


def test_the_commit_is_that_of_git(tmp_path: Path) -> None:
    def git(*words: str, folder: Path = tmp_path) -> str:
        about = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *about, *words], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert packages.commit_of(tmp_path) is None
    git("init", "-q")
    assert packages.commit_of(tmp_path) is None
    git("commit", "-q", "--allow-empty", "-m", "one")
    first = git("rev-parse", "HEAD")
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert packages.commit_of(tmp_path / "a" / "b") == first
    git("pack-refs", "--all")
    assert packages.commit_of(tmp_path) == first
    git("worktree", "add", "-q", "-b", "other", "beside")
    git("commit", "-q", "--allow-empty", "-m", "two", folder=tmp_path / "beside")
    assert packages.commit_of(tmp_path / "beside") == git("rev-parse", "other") != first
    git("checkout", "-q", "--detach")
    assert packages.commit_of(tmp_path) == first


def test_an_environment_without_a_fault_has_none() -> None:
    assert faults.faults(sound()) == []
    assert faults.faults({}) == []


@pytest.mark.parametrize(
    ("changes", "environ", "told"),
    [
        (
            {"torch": {"cuda": None, "version": "2.13.0+cpu"}, "accelerators": {"cuda": False}},
            {},
            "torch 2.13.0+cpu was built without CUDA: runs go to the CPU",
        ),
        ({"accelerators": {"cuda": False}}, {}, "CUDA 13.0 may want a newer driver than none"),
        ({"accelerators": {"cuda": False}}, {"CUDA_VISIBLE_DEVICES": ""}, "hides all GPUs"),
        ({"torch": {"built_for": ["sm_75", "sm_100a"]}}, {}, r"cuda:0 (H100) has capability 9.0"),
        (
            {"torch": {"threads": 16}},
            {},
            "16 threads share 8 cores, and wait for each other; set OMP_NUM_THREADS=8",
        ),
        ({}, {"LOCAL_WORLD_SIZE": "4"}, "4 threads in each of 4 ranks share 8 cores"),
        ({}, {"LOCAL_WORLD_SIZE": "4"}, "OMP_NUM_THREADS=2"),
        ({"machine": {"shared_memory": 0.06}}, {}, "/dev/shm has 0.06 GiB"),
        ({"machine": {"disk_free": 0.5}}, {}, "0.50 GiB are free"),
        ({}, {"CUDA_LAUNCH_BLOCKING": "1"}, "CUDA_LAUNCH_BLOCKING=1: each operation"),
        ({}, {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}, "TORCH_DISTRIBUTED_DEBUG=DETAIL: each exchange"),
    ],
)
def test_what_makes_trouble_is_pointed_out(
    changes: dict[str, Any], environ: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    (fault,) = faults.faults(sound(**changes))
    assert told in fault


def test_a_package_built_for_another_torch_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = {
        "torchvision": ["numpy", "torch==2.12.0"],
        "torchaudio": ["torch (==2.13.0)"],
        "xformers": ["torch>=2"],
    }
    monkeypatch.setattr(packages, "requires", pins.get)
    monkeypatch.setattr(packages, "version_of", lambda name: "0.27.0" if name in pins else None)
    (fault,) = faults.faults(sound(packages={"torchvision": "0.27.0"}))
    assert "torchvision 0.27.0 was built for torch 2.12.0, not 2.13.0+cu130" in fault


def test_a_part_that_cannot_be_looked_at_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, Any]:
        raise OSError("no such driver")

    monkeypatch.setattr(reporting, "_PARTS", {"machine": machine.machine, "accelerators": broken})
    report = environment_report()
    assert report.parts["accelerators"] == {"unknown": "OSError: no such driver"}
    assert "cores" in report.parts["machine"] and "no such driver" in str(report)


def test_cores_are_those_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(6)))
    for text, cores in {"250000 100000\n": 2.5, "max 100000\n": 6.0, "": 6.0}.items():
        monkeypatch.setattr(machine, "Path", lambda _, text=text: SimpleNamespace(read_text=lambda: text))
        assert machine.usable_cores() == cores


class Files(Hook):
    """Which files the log folder has when training begins, and after each iteration."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def before_train(self, runner: Any) -> None:
        self._note(runner)

    def after_train_iter(self, runner: Any) -> None:
        self._note(runner)

    def _note(self, runner: Any) -> None:
        if runner.log_folder is not None:
            self.seen.append(Path(runner.log_folder, "environment.txt").exists())


def run(work_dir: str, *hooks: Hook, **options: Any) -> Files:
    files = Files()
    given: dict[str, Any] = {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(24), "batch_size": 2},
        "train_cfg": {"max_iters": 4},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "default_hooks": {"logger": {"interval": 2}},
        "custom_hooks": [files, *hooks],
        "loggers": ["jsonl"],
        "work_dir": work_dir,
    }
    runner = Runner(perceptron(), **{**given, **options})
    try:
        runner.train()
    finally:
        runner.close()
    return files


def written(work_dir: Path) -> list[Path]:
    return sorted(work_dir.glob("runs/*/environment.txt"))


def test_a_run_writes_it_once_at_its_first_log_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[EnvironmentReport] = []

    def counted() -> EnvironmentReport:
        made.append(environment_report())
        return made[-1]

    monkeypatch.setattr("stratrun.environment.environment_report", counted)
    # The hook comes before the one that logs.
    assert run(str(tmp_path)).seen == [False, False, False, True, True]
    (path,) = written(tmp_path)
    assert len(made) == 1 and path.read_text() == f"{made[0]}\n"
    assert read_history(str(tmp_path)).texts["environment"] == path.read_text()


def test_a_run_that_fails_at_once_leaves_it_too(tmp_path: Path) -> None:
    class Fails(Hook):
        def before_train_iter(self) -> None:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        run(str(tmp_path), Fails())
    assert len(written(tmp_path)) == 1


def test_a_run_that_logs_nothing_writes_none(tmp_path: Path) -> None:
    assert run(str(tmp_path), loggers=[]).seen == [False] * 5
    assert written(tmp_path) == []


def test_the_main_rank_alone_writes_it(two_ranks: Ranks, tmp_path: Path) -> None:
    two_ranks(run_on_a_rank, str(tmp_path))
    (path,) = written(tmp_path)
    assert "WORLD_SIZE" in path.read_text()


def run_on_a_rank(work_dir: str) -> None:
    run(work_dir, strategy="ddp")


def test_a_full_disk_keeps_no_run_from_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert len(run(str(tmp_path), default_hooks={"checkpoint": None}).seen) == 5
    assert written(tmp_path) == []
