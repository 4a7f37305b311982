"""Processes that train until they are killed, and who kills them and starts them again.

All of it runs in a rank of `bare_ranks`: a process with torch imported, from which a start costs a fork.
"""

import json
import os
import pickle
import random
import signal
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stratrun.checkpoint import StoredCheckpoint
from stratrun.checkpoint.discovery import committed_steps
from stratrun.checkpoint.layout import name_of
from stratrun.errors import CheckpointError
from stratrun.hooks import Hook
from stratrun.storage import Folder
from tests.end_to_end.resume_job import MEASURED, Case, train

# What a save, the removal of an old one and the log files are made of.
OPERATIONS = ("fsync", "rename", "replace", "unlink", "remove", "rmdir", "mkdir", "write", "pwrite", "open")
INTERVAL, KEEP = 3, 2


class Progress(Hook):
    """Writes down where a process began and which iterations it did, a short line at a time."""

    priority = 100

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def before_train(self, runner: Any) -> None:
        self._tell("from", runner.iter)

    def after_train_iter(self, runner: Any) -> None:
        self._tell("done", runner.iter)

    def _tell(self, what: str, count: int) -> None:
        if os.environ.get("RANK", "0") == "0":
            _write(self.file, f"{what} {count}\n".encode())


_write = os.write  # which `die_at` does not count


@dataclass
class Job:
    """A run with a folder of its own, and what its processes left there."""

    folder: Path
    case: Case
    save: Mapping[str, Any] = field(default_factory=dict)
    kills: int = 0
    within_saves: int = 0
    """Kills that left a checkpoint which was begun."""
    damaged: list[str] = field(default_factory=list)
    """Checkpoints with a marker that were not whole after a kill."""

    def train(self) -> None:
        """What each process does, from wherever the last one has come."""
        case = Case(
            **{**self.case.__dict__, "hooks": (*self.case.hooks, Progress(str(self.folder / "progress")))}
        )
        save = {"interval": INTERVAL, "by_epoch": False, "keep_last": KEEP, **self.save}
        result = train(case, str(self.folder / "work"), save=save, resume="auto")
        with open(self.folder / f"final-{os.environ.get('RANK', '0')}", "wb") as stream:
            pickle.dump(result, stream)

    def finals(self) -> list[dict[str, Any]]:
        files = (self.folder / f"final-{rank}" for rank in range(self.case.size))
        return [pickle.loads(file.read_bytes()) for file in files]

    def attempts(self) -> list[tuple[int, int]]:
        """Iterations that each process began after and came to, of those that came to train."""
        found: list[tuple[int, int]] = []
        for line in (self.folder / "progress").read_text().splitlines():
            what, count = line.split()
            if what == "from":
                found.append((int(count), int(count)))
            else:
                found[-1] = (found[-1][0], int(count))
        return found

    def leftovers(self) -> list[str]:
        """What lies in the work dir, but for log folders."""
        work = self.folder / "work"
        inner = [f"checkpoints/{path.name}" for path in (work / "checkpoints").iterdir()]
        return sorted([*(path.name for path in work.iterdir()), *inner])

    def look(self) -> None:
        """Take note of what a kill has left."""
        folder = Folder(self.folder / "work" / "checkpoints")
        self.kills += 1
        self.within_saves += any(name.startswith(".") for name in folder.names())
        for step in committed_steps(folder):
            try:
                StoredCheckpoint(folder.child(name_of(step))).verify()
            except CheckpointError as error:
                self.damaged.append(str(error))

    def records(self) -> tuple[dict[Any, Any], list[str]]:
        """Each record of the logs by what identifies it, and what is wrong with them."""
        found: dict[Any, Any] = {}
        wrong = []
        for path in (self.folder / "work" / "runs").glob("*/metrics.jsonl"):
            *lines, torn = path.read_text().split("\n")
            for record in map(json.loads, lines):
                values = {k: v for k, v in record.items() if k.removesuffix("_epoch") not in MEASURED}
                del values["timestamp"]
                key = (values["kind"], values["iter"], *sorted(values))
                if found.setdefault(key, values) != values:
                    wrong.append(f"{path}: {values}, and elsewhere {found[key]}")
            if torn:
                wrong.append(f"{path} ends in {torn!r}")
        return found, wrong


def die_at(operation: int) -> None:
    """Have this process killed when it comes to so many changes of the file system."""
    left = [operation]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))


def start(work: Callable[[], None], variables: Mapping[str, str], operation: int | None = None) -> int:
    """Do it in a process of its own; returns the process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(variables)
        if operation is not None:
            die_at(operation)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def variables_of(size: int) -> list[dict[str, str]]:
    """What a launcher sets for each process, with a place to meet that no earlier one had."""
    if size == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_PORT": port}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def attempt(job: Job, moment: float | None, operation: int | None, victim: int = 0) -> bool:
    """Start the processes of a job and kill one of them, if it lives that long, then the others.

    Returns whether the job was done before.
    """
    pids = [
        start(job.train, own, operation if rank == victim else None)
        for rank, own in enumerate(variables_of(job.case.size))
    ]
    codes = _ended(pids, moment, victim)
    if -signal.SIGKILL not in codes and any(codes):
        raise AssertionError(f"a process that was not killed ended with {codes}")
    if any(codes):
        job.look()
    return not any(codes)


def _ended(pids: Sequence[int], moment: float | None, victim: int) -> list[int]:
    """Exit codes. What torchrun does: when one has failed, the others are ended."""
    deadline = None if moment is None else time.monotonic() + moment
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                finished, status = os.waitpid(pid, os.WNOHANG)
                if finished:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        living = [pid for pid in pids if pid not in codes]
        late = deadline is not None and time.monotonic() > deadline
        if late and pids[victim] in living:
            os.kill(pids[victim], signal.SIGKILL)
            deadline = None
        elif any(codes.values()):
            for pid in living:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    return [codes[pid] for pid in pids]


def killed_jobs(folder: str, case: Case, kills: int, seed: int, save: Mapping[str, Any]) -> list[Job] | None:
    """The whole run first, then runs that are killed, at random moments and operations by turns.

    Each goes on until it is done; there are as many as the kills take.
    """
    if os.environ.get("RANK") != "0":
        return None
    draw = random.Random(seed)
    whole = Job(Path(folder, "whole"), case, save)
    whole.folder.mkdir(parents=True)
    began = time.monotonic()
    assert attempt(whole, None, None)
    lasted = time.monotonic() - began
    jobs = [whole]
    while sum(job.kills for job in jobs) < kills:
        job = Job(Path(folder, f"killed-{len(jobs)}"), case, save)
        job.folder.mkdir()
        jobs.append(job)
        done = False
        while not done:
            left = kills - sum(job.kills for job in jobs)
            moment = draw.uniform(0, lasted / 3) if left > 0 and left % 2 else None
            operation = draw.randrange(160) if left > 0 and not left % 2 else None
            done = attempt(job, moment, operation, draw.randrange(case.size))
    return jobs
