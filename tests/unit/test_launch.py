"""What launchers make of a job: the command line of torchrun, here, on several machines and within Slurm."""

import shlex
from pathlib import Path

import pytest

from stratrun import LAUNCHERS
from stratrun.cli.main import run
from stratrun.distributed import torchrun
from stratrun.errors import ConfigError
from stratrun.launch import Job, Launcher, SlurmLauncher, Start, TorchrunLauncher

SLURM = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "gpu3,gpu7,gpu8,gpu9"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RANK", *SLURM, "SLURM_NNODES", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def printed(capsys: pytest.CaptureFixture[str], words: str) -> str:
    assert run(["launch", "--dry-run", *shlex.split(words)]) == 0
    return capsys.readouterr().out.strip()


def test_a_job_is_started_as_torchrun_would_start_it(capsys: pytest.CaptureFixture[str]) -> None:
    told = printed(capsys, "-n 2 train run.yaml --import parts.py a=1")
    assert told == (
        f"{shlex.join(torchrun())} --standalone --nproc_per_node=2 --max_restarts=0 "
        "-m stratrun train run.yaml --import parts.py a=1"
    )


def test_a_program_and_a_module_keep_their_own_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "train.py").touch()
    assert printed(capsys, "-n 2 train.py -n 7 --dry-run").endswith("=0 train.py -n 7 --dry-run")
    assert printed(capsys, "-n 2 -m my.job --lr=1").endswith("=0 -m my.job --lr=1")


def test_each_of_several_machines_is_told_where_to_meet(capsys: pytest.CaptureFixture[str]) -> None:
    told = printed(capsys, "-n 8 --nodes 2 --node 1 --rendezvous node0 --id run7 --restarts 3 train run.yaml")
    options = shlex.split(told)
    assert {"--nnodes=2", "--nproc_per_node=8", "--max_restarts=3", "--node_rank=1"} <= set(options)
    assert {"--rdzv_backend=c10d", "--rdzv_endpoint=node0:29500", "--rdzv_id=run7"} <= set(options)
    assert "--standalone" not in options


def test_grace_is_what_torchrun_waits_before_it_kills(capsys: pytest.CaptureFixture[str]) -> None:
    told = printed(capsys, "-n 2 --grace 90 train run.yaml")
    assert told.startswith("TORCH_ELASTIC_SHUTDOWN_TIMEOUT=90 ")


def test_a_batch_script_of_slurm_starts_one_torchrun_on_each_machine() -> None:
    start = SlurmLauncher(SLURM).start(Job(target=("train.py",), per_node=8))
    assert start.command[:4] == ("srun", "--nodes=4", "--ntasks=4", "--ntasks-per-node=1")
    assert {"--nnodes=4", "--rdzv_endpoint=gpu3:19567", "--rdzv_id=1234567"} <= set(start.command)


@pytest.mark.parametrize(
    ("step", "inside"), [("0", True), ("17", True), ("batch", False), ("4294967291", False)]
)
def test_a_step_of_slurm_is_one_machine_of_several(step: str, inside: bool) -> None:
    start = SlurmLauncher({**SLURM, "SLURM_STEP_ID": step}).start(Job(target=("train.py",), per_node=8))
    assert (start.command[: len(torchrun())] == tuple(torchrun())) is inside
    assert (start.command[0] == "srun") is not inside
    assert "--nnodes=4" in start.command


def test_what_is_told_goes_before_what_slurm_says() -> None:
    job = Job(target=("train.py",), per_node=8, nodes=2, rendezvous="other:1", run_id="mine")
    command = SlurmLauncher(SLURM).start(job).command
    assert {"--nnodes=2", "--rdzv_endpoint=other:1", "--rdzv_id=mine"} <= set(command)


def test_hosts_in_brackets_are_asked_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = SlurmLauncher({**SLURM, "SLURM_JOB_NODELIST": "gpu[03-06]"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"'gpu\[03-06\]'.*give --rendezvous"):
        told.start(Job(target=("train.py",), per_node=8))
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[03-06]" ] && echo gpu03 && echo gpu04\n')
    program.chmod(0o755)
    assert "--rdzv_endpoint=gpu03:19567" in told.start(Job(target=("train.py",), per_node=8)).command


def test_slurm_is_taken_where_a_job_of_it_has_several_machines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert printed(capsys, "-n 8 train run.yaml").startswith("srun ")
    assert "--standalone" in printed(capsys, "-n 8 --launcher torchrun train run.yaml")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert "--standalone" in printed(capsys, "-n 8 train run.yaml")


def test_a_launcher_of_ones_own_is_found_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class EchoLauncher(Launcher):
        """Says what it would start."""

        def start(self, job: Job) -> Start:
            return Start(("echo", str(job.per_node), *job.target), {"A": "b c"})

    monkeypatch.setattr(LAUNCHERS, "_entries", {**LAUNCHERS.entries(), "echo": EchoLauncher})
    assert (
        printed(capsys, "-n 3 --launcher echo train run.yaml") == "A='b c' echo 3 -m stratrun train run.yaml"
    )


def test_a_job_that_names_no_number_has_a_process_on_each_gpu() -> None:
    assert "--nproc_per_node=gpu" in TorchrunLauncher().start(Job(target=("train.py",))).command


def test_several_machines_without_a_place_to_meet_are_refused() -> None:
    with pytest.raises(ConfigError, match="--nodes 2 needs --rendezvous"):
        TorchrunLauncher().start(Job(target=("train.py",), per_node=1, nodes=2))
