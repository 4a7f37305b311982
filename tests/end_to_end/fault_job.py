"""A run whose storage fails on the way, and what its ranks were told."""

import os
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _get_default_store

from stratrun import Runner
from stratrun.checkpoint import StoredCheckpoint
from stratrun.checkpoint.discovery import committed_steps
from stratrun.hooks import Hook
from stratrun.storage import Folder, Retry
from tests.problems import CLASSES, FEATURES, points
from tests.stores import Store

STEPS, INTERVAL = 16, 4
FAULT_AT = 5


@dataclass
class Told:
    """What became of a run on one rank."""

    error: str = ""
    """Class of the error, and its text."""
    trace: str = ""
    seconds: float = 0.0
    """From when the fault began to the error."""
    iterations: int = 0
    late: int = 0
    """Iterations that were begun and done although the save had failed on this rank before."""


class Breaking(Hook):
    """Has the storage fail after an iteration, and watches what the run does then."""

    def __init__(self, break_it: Callable[[], None], told: Told) -> None:
        self.break_it = break_it
        self.told = told
        self.since = time.monotonic()
        self._failed = False

    def before_train_iter(self, runner: Any, batch: Any = None) -> None:
        self._failed = runner.checkpointer._background._failed.is_set()

    def after_train_iter(self, runner: Any) -> None:
        self.told.iterations = runner.iter
        self.told.late += self._failed
        if runner.iter == FAULT_AT:
            runner.checkpointer.wait()  # the save before is to be whole
            self.break_it()
            self.since = time.monotonic()
        time.sleep(0.01)  # so that a save ends within some iterations


def weighty() -> nn.Module:
    """A state of 3 MiB, with the momentum of its weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 40_000), nn.Tanh(), nn.Linear(40_000, CLASSES))


def light() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def run(
    work_dir: str,
    break_it: Callable[[], None] = lambda: None,
    *,
    model: Callable[[], nn.Module] = light,
    asynchronous: bool = True,
    options: Mapping[str, Any] | None = None,
    retry: Mapping[str, Any] | None = None,
    steps: int = STEPS,
    resume: Any = False,
    mend: Callable[[], None] = lambda: None,
) -> Told:
    """Train, and save every few iterations; what is raised is told.

    Args:
        break_it: Called after an iteration on every rank; `mend` at the end.
        retry: How long the storage is insisted on.
    """
    told = Told()
    hook = Breaking(break_it, told)
    with pytest.MonkeyPatch.context() as patch:
        if retry is not None:
            patch.setattr("stratrun.storage.filesystem.Retry", partial(Retry, **retry))
        runner = Runner(
            model(),
            loss="cross_entropy",
            work_dir=work_dir,
            train_dataloader={"dataset": points(64), "global_batch_size": 4},
            train_cfg={"by_epoch": False, "max_iters": steps},
            optimizer={"type": "SGD", "lr": 0.1, "momentum": 0.9},
            default_hooks={"checkpoint": {"interval": INTERVAL, "by_epoch": False, "keep_last": 2}},
            custom_hooks=[hook],
            loggers=(),
            randomness={"seed": 0},
            resume=resume,
            checkpoint_cfg={"asynchronous": asynchronous, "storage_options": dict(options or {})},
        )
        try:
            runner.train()
        except Exception as error:
            told.error = f"{type(error).__name__}: {error}"
            told.trace = "".join(traceback.format_exception(error))
        finally:
            told.seconds = time.monotonic() - hook.since
            mend()
            runner.close()
    return told


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


# What may become of a local disk. Each is called on every rank.


def fill_up(place: str, left: int) -> None:
    if rank() == 0:
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        with open(f"{place}/ballast", "wb") as stream:
            stream.write(bytes(free - left))


def make_read_only(place: str) -> None:
    if rank() == 0:
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)


def lose_permission(of: int | None = None) -> None:
    """Of all ranks, or of one."""
    if of in (None, rank()):
        if dist.is_initialized():  # the ranks of tests meet in a file, which those of torchrun do not
            store: Any = _get_default_store()
            while hasattr(store, "underlying_store"):
                store = store.underlying_store
            path = Path(store.path)
            path.chmod(0o666)
            path.parent.chmod(0o777)
        os.seteuid(65534)


def regain_permission() -> None:
    if os.geteuid():
        os.seteuid(0)


def mounted(place: Path, size: str) -> None:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "none", place], check=True)


def job(work_dir: str, fault: str, **options: Any) -> Told:
    """A run on a local disk with a fault of this name."""
    disk = str(Path(work_dir).parent)
    faults: dict[str, Callable[[], None]] = {
        "none": lambda: None,
        "full": lambda: fill_up(disk, 700_000),
        "read-only": lambda: make_read_only(disk),
        "denied": lose_permission,
        "denied to rank 1": lambda: lose_permission(of=1),
    }
    return run(work_dir, faults[fault], model=weighty, mend=regain_permission, **options)


def s3_job(store: Store, faults: Mapping[str, Any], **options: Any) -> Told:
    """A run on S3; the faults begin after an iteration."""

    def break_it() -> None:
        if rank() == 0:
            store.set_faults(**faults)

    return run(store.url, break_it, options=store.options, **options)


def check_whole(folder: Folder) -> list[int]:
    """The steps there, of which each is read whole."""
    steps = committed_steps(folder.child("checkpoints"))
    for step in steps:
        StoredCheckpoint(folder.child(f"checkpoints/step-{step:08d}")).verify()
    return steps
