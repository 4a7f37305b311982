"""``stratrun launch``, run: its processes are those of torchrun, on one machine and on two."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = r"""import os, sys, time
import torch, torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor(float(dist.get_rank() + 1))
dist.all_reduce(total)
os.write(1, f"sum {total.item()} of {dist.get_world_size()} with {sys.argv[1:]}\n".encode())
if "wait" in sys.argv:
    time.sleep(60)
os._exit(3 if "fail" in sys.argv else 0)  # gloo's threads abort the end of an interpreter now and then
"""


def launched(folder: Path, *words: str, **environ: str) -> "subprocess.Popen[str]":
    (folder / "sums.py").write_text(PROGRAM)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "RANK"))}
    command = [sys.executable, "-m", "stratrun", "launch", *words]
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**kept, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port(least: int = 30000) -> int:
    for port in range(least + os.getpid() % 5000, least + 10000):
        with socket.socket() as one:
            if one.connect_ex(("localhost", port)):
                return port
    raise AssertionError("no port is free")


@pytest.mark.timeout(120)
def test_the_processes_of_one_machine_make_one_group(tmp_path: Path) -> None:
    job = launched(tmp_path, "-n", "2", "sums.py", "--lr", "1")
    out, told = job.communicate(timeout=100)
    assert job.returncode == 0, told
    assert out.splitlines() == ["sum 3.0 of 2 with ['--lr', '1']"] * 2


@pytest.mark.timeout(120)
def test_a_process_that_fails_is_a_failure(tmp_path: Path) -> None:
    job = launched(tmp_path, "-n", "1", "sums.py", "fail")
    _, told = job.communicate(timeout=100)
    assert job.returncode == 1
    assert "exitcode  : 3" in told


@pytest.mark.timeout(120)
def test_two_machines_meet_and_make_one_group(tmp_path: Path) -> None:
    words = ("-n", "2", "--nodes", "2", "--rendezvous", f"localhost:{free_port()}", "sums.py")
    machines = [launched(tmp_path, *words) for _ in range(2)]
    for machine in machines:
        out, told = machine.communicate(timeout=100)
        assert machine.returncode == 0, told
        assert out.splitlines() == ["sum 10.0 of 4 with []"] * 2


@pytest.mark.timeout(120)
def test_a_batch_script_of_slurm_has_all_machines_make_one_group(tmp_path: Path) -> None:
    # An srun that starts its command as many times as there are to be tasks, all on this machine.
    srun = tmp_path / "srun"
    srun.write_text(
        "#!/bin/bash\nfor word; do case $word in --ntasks=*) n=${word#*=};; esac; done\n"
        "while [[ $1 == --* ]]; do shift; done\n"
        'for ((i = 0; i < n; i++)); do SLURM_STEP_ID=0 "$@" & done\nwait -n && wait\n'
    )
    srun.chmod(0o755)
    job = launched(
        tmp_path,
        *("-n", "1", "sums.py"),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        SLURM_JOB_ID=str(free_port(15000) - 15000),  # which tells the port
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_NODELIST="localhost",
    )
    out, told = job.communicate(timeout=100)
    assert job.returncode == 0, told
    assert out.splitlines() == ["sum 3.0 of 2 with []"] * 2


@pytest.mark.timeout(120)
def test_a_signal_ends_all_processes(tmp_path: Path) -> None:
    job = launched(tmp_path, "-n", "2", "sums.py", "wait")
    assert job.stdout is not None
    for _ in range(2):
        assert job.stdout.readline().startswith("sum 3.0")
    start = time.monotonic()
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=100)
    assert job.returncode != 0
    assert time.monotonic() - start < 30
