"""Another start of a job that was stopped, by the queue that started it."""

import os
import shutil
import subprocess
from collections.abc import Mapping

# A controller that is busy is retried by `scontrol` itself for about so long.
_SECONDS = 60


def requeue(environ: Mapping[str, str] = os.environ) -> str:
    """Have SLURM put this very job into its queue again. Returns what became of that, for the user."""
    job = job_of(environ)
    if job is None:
        return "not put into the queue again: SLURM_JOB_ID is not set, so this is no job of SLURM"
    if shutil.which("scontrol") is None:
        return f"not put into the queue again: job {job} has no scontrol on its PATH"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not put into the queue again: scontrol requeue {job}: {error}"
    if done.returncode:
        told = (done.stderr or done.stdout).strip()
        return f"not put into the queue again: scontrol requeue {job} ended with {done.returncode}: {told}"
    return f"put into the queue again as job {job}"


def job_of(environ: Mapping[str, str]) -> str | None:
    """What SLURM calls this job: of an array, the one task of it."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")
