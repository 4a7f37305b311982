"""The machines of a Slurm allocation."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace

from stratrun.errors import ConfigError
from stratrun.launch.base import Job, Launcher, Start
from stratrun.launch.torchrun import TorchrunLauncher
from stratrun.registry import LAUNCHERS

# Ports of a user's own: below those that systems hand out, and another for each job of a machine.
_FIRST_PORT, _PORTS = 15000, 10000


@LAUNCHERS.register_module("slurm")
class SlurmLauncher(Launcher):
    """All machines of the Slurm job: from its batch script by one srun, or, within a step, as one of them.

    Machines, the meeting place and the name of the run come from the environment that Slurm gives
    (https://slurm.schedmd.com/sbatch.html, "OUTPUT ENVIRONMENT VARIABLES"); what the job says goes before.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = os.environ if environment is None else environment

    def start(self, job: Job) -> Start:
        job_id = self._environment.get("SLURM_JOB_ID")
        if job_id is None:
            raise ConfigError(
                "--launcher slurm is for a job of Slurm, and SLURM_JOB_ID is not set; put the command into a "
                "script for sbatch, or leave the option out"
            )
        nodes = job.nodes or self._number("SLURM_JOB_NUM_NODES", "SLURM_NNODES")
        number = int(re.sub(r"\D", "", job_id) or 0)
        filled = replace(
            job,
            nodes=nodes,
            rendezvous=job.rendezvous or f"{self._first_host()}:{_FIRST_PORT + number % _PORTS}",
            run_id=job.run_id or job_id,
        )
        start = TorchrunLauncher().start(filled)
        if is_step(self._environment):
            return start
        spread = (
            "srun",
            f"--nodes={nodes}",
            f"--ntasks={nodes}",
            "--ntasks-per-node=1",
            "--kill-on-bad-exit=1",
        )
        return replace(start, command=(*spread, *start.command))

    def _number(self, *names: str) -> int:
        for name in names:
            if (value := self._environment.get(name, "")).isdecimal():
                return int(value)
        raise ConfigError(f"how many machines? {names[0]} does not say; give --nodes N")

    def _first_host(self) -> str:
        listed = self._environment.get("SLURM_JOB_NODELIST", "")
        if not listed:
            raise ConfigError("SLURM_JOB_NODELIST does not say where to meet; give --rendezvous HOST:PORT")
        if "[" not in listed:
            return listed.partition(",")[0]
        try:
            command = ["scontrol", "show", "hostnames", listed]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError) as error:
            raise ConfigError(
                f"scontrol cannot tell the hosts of {listed!r} ({error}); give --rendezvous HOST:PORT"
            ) from error


def is_step(environment: Mapping[str, str]) -> bool:
    """Whether this is one of the processes that srun has started, not the batch script."""
    return environment.get("SLURM_STEP_ID", "batch") not in ("batch", "extern", "4294967291", "4294967294")


def is_several(environment: Mapping[str, str]) -> bool:
    """Whether this is a job of Slurm on more than one machine."""
    nodes = environment.get("SLURM_JOB_NUM_NODES", environment.get("SLURM_NNODES", "1"))
    return "SLURM_JOB_ID" in environment and nodes.isdecimal() and int(nodes) > 1
