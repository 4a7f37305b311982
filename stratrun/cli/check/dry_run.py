"""``stratrun check --dry-run``: what a job needs, and a step of it in earnest, of which nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field

from stratrun.cli.failures import MISTAKE
from stratrun.errors import ConfigError

# In place of other settings for developing, which might contradict it.
_ONCE = ("dev_cfg={_delete_: true, fast_dev_run: true}", "resume=false")
_SAVED = "the checkpoint was written, read and loaded"


@dataclass(slots=True)
class DryRun:
    """What was found out beyond the config."""

    memory: dict[str, int] = field(default_factory=dict)
    """Bytes of a rank in training, at most: of each kind, and ``peak`` together."""
    remarks: list[str] = field(default_factory=list)
    """What the estimate leaves out."""
    jobs: list[str] = field(default_factory=list)
    """Those of which a batch was done."""
    saved: bool = False
    """Whether a checkpoint was written where the run would write it, read and loaded."""
    failed: str = ""
    """What the job that failed has said."""
    code: int = 0


def refuse_launched() -> None:
    """
    Raises:
        ConfigError: this is a process of a launched job, of which each would start others.
    """
    if "RANK" in os.environ:
        raise ConfigError(
            "check --dry-run starts the processes it needs; run it without torchrun, with --world-size N"
        )


def dry_run(given: Namespace, jobs: Sequence[str]) -> DryRun:
    """Estimate the memory of training; and, but with ``--meta``, do a batch of each job."""
    found = DryRun()
    if "train" in jobs:
        try:
            _estimate(given, found)
        except Exception as error:  # whatever a model of the user's raises
            if given.meta:
                found.failed, found.code = f"{type(error).__name__}: {error}", MISTAKE
                return found
            # The job itself tells it better.
            found.remarks = [f"the memory could not be estimated: {type(error).__name__}"]
    if given.meta:
        if "train" in jobs and "peak" not in found.memory:
            found.failed, found.code = "\n".join(found.remarks), 1
        return found
    # Training validates where there is something to validate on.
    for job in [one for one in jobs if one != "val" or "train" not in jobs]:
        done = _tried(given, job)
        if done.returncode:
            found.failed, found.code = done.stderr.strip() or done.stdout.strip(), done.returncode
            break
        found.jobs.append(job)
        found.saved = found.saved or _SAVED in done.stdout
    return found


def as_text(found: DryRun, *, meta: bool) -> str:
    # Only now: it brings torch along.
    from stratrun.cli.ckpt import text

    lines = []
    if found.memory:
        parts = ", ".join(
            f"{name} {text.size(size)}" for name, size in found.memory.items() if size and name != "peak"
        )
        at_most = f"{text.size(found.memory['peak'])} at most" if "peak" in found.memory else "at least"
        lines.append(f"memory of a rank in training: {at_most} ({parts})")
    lines += [f"  {remark}" for remark in found.remarks]
    if found.jobs:
        saved = f"; {_SAVED}" if found.saved else ""
        lines.append(f"one batch each of {', '.join(found.jobs)}: done{saved}; nothing of it is left")
    elif meta and not found.failed:
        lines.append("the step was gone through without values; leave out --meta to do one")
    if found.failed:
        lines += [found.failed, "the config is as it should be, and a batch of its job failed"]
    return "\n".join(lines)


def _estimate(given: Namespace, found: DryRun) -> None:
    from stratrun.cli.plan.planning import plan

    ranks = given.world_size or 1
    options = {**vars(given), "world_size": ranks, "per_node": None, "strategy": None, "batch_size": None}
    made = plan(Namespace(**options), bandwidth=1e9)
    found.memory = dict(made.memory)
    if made.peak is not None:
        found.memory["peak"] = made.peak.total
    found.remarks = list(made.remarks)


def _tried(given: Namespace, job: str) -> subprocess.CompletedProcess[str]:
    """A job cut down to a batch, in processes of its own: what it leaves in them is gone with them."""
    launch = ["launch", "-n", str(given.world_size)] if (given.world_size or 1) > 1 else []
    words = [given.config, *given.settings, *_ONCE]
    words += [word for name in given.imports for word in ("--import", name)]
    words += [word for prefix in given.allow for word in ("--allow", prefix)]
    command = [sys.executable, "-m", "stratrun", *launch, job, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)
