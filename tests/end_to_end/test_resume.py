"""Ways to resume: after a kill, from a path, with another seed, on another number of ranks."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from stratrun.errors import CheckpointNotFoundError
from stratrun.hooks import Hook
from tests.end_to_end.resume_job import (
    EPOCHS,
    PER_EPOCH,
    SAMPLES,
    Case,
    differences,
    on,
    read,
    spent_after,
    tail,
    train,
)
from tests.rank_server import RankError
from tests.ranks import Ranks

ITERATIONS = PER_EPOCH * EPOCHS
SAVED_AT = 4
SAVE = {"interval": SAVED_AT, "by_epoch": False, "keep_last": None}


class Killer(Hook):
    """Kills this process when so many iterations are done, and a checkpoint is there."""

    priority = 100

    def __init__(self, at: int, work_dir: str) -> None:
        self.at = at
        self.marker = Path(work_dir, "checkpoints", f"step-{SAVED_AT:08d}", "COMMITTED")

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter != self.at:
            return
        while not self.marker.exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_a_killed_run_that_is_resumed_is_the_uninterrupted_one(
    size: int, workers: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    case = Case(size, workers)
    truth = on(two_ranks, size, train, case, str(tmp_path / "whole"))
    work_dir, log = str(tmp_path / "broken"), tmp_path / "resumed.txt"
    killed = Case(size, workers, hooks=(Killer(7, work_dir),))
    with pytest.raises(RankError, match="died, exit code -9"):
        on(two_ranks, size, train, killed, work_dir, save=SAVE)
    resumed = on(two_ranks, size, train, case, work_dir, save=SAVE, resume=True, read_log=str(log))
    for found, whole in zip(resumed, truth, strict=True):
        assert differences(tail(found), tail(whole, SAVED_AT)) == []
    # The samples before the checkpoint are not read again, be it to skip them. A rank that has no
    # sample of a batch repeats the first.
    rest = [index for whole in truth for batch in whole["seen"][SAVED_AT:] for index in batch]
    assert sorted(read(log)) == sorted(rest)


def test_a_run_goes_on_from_auto_and_from_a_path(two_ranks: Ranks, tmp_path: Path) -> None:
    case, first = Case(accumulate=3), str(tmp_path / "first")
    (truth,) = on(two_ranks, 1, train, case, str(tmp_path / "whole"))
    (begun,) = on(two_ranks, 1, train, case, first, save=SAVE, resume="auto", stop_at=7)
    assert begun["seen"] == truth["seen"][:7]
    # From a path of the user's own into another folder; an older one at that.
    path = str(tmp_path / "first" / "checkpoints" / f"step-{SAVED_AT:08d}")
    (other,) = on(two_ranks, 1, train, case, str(tmp_path / "other"), save=SAVE, resume=path)
    assert differences(tail(other), tail(truth, SAVED_AT)) == []
    (rest,) = on(two_ranks, 1, train, case, first, save=SAVE, resume="auto")
    assert differences(tail(rest), tail(truth, 7)) == []


def test_to_resume_from_nothing_is_an_error_that_names_auto(two_ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="resume='auto' starts anew"):
        on(two_ranks, 1, train, Case(), str(tmp_path), resume=True)


def test_another_seed_at_resume_changes_nothing(two_ranks: Ranks, tmp_path: Path) -> None:
    (truth,) = on(two_ranks, 1, train, Case(), str(tmp_path / "whole"))
    on(two_ranks, 1, train, Case(), str(tmp_path / "broken"), save=SAVE, stop_at=3)
    other = Case(options={"randomness": {"seed": 99}})
    (resumed,) = on(two_ranks, 1, train, other, str(tmp_path / "broken"), save=SAVE, resume=True)
    # Neither the order, nor the noise of training and validation.
    assert differences(tail(resumed), tail(truth, 3)) == []


def test_two_ranks_then_one_then_two_see_each_sample_once_in_the_same_global_order(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    truth = on(two_ranks, 1, train, Case(), str(tmp_path / "whole"))
    work_dir, parts = str(tmp_path / "moved"), []
    for size, stop_at in ((2, 3), (1, 7), (2, None)):
        done = sum(len(part[0]["seen"]) for part in parts)
        spent = spent_after(truth, done, PER_EPOCH)
        start = {"save": SAVE, "resume": "auto", "stop_at": stop_at, "spent": spent}
        parts.append(on(two_ranks, size, train, Case(size), work_dir, **start))
    batches = [
        sorted({index for part in iteration for index in part})
        for results in parts
        for iteration in zip(*(result["seen"] for result in results), strict=True)
    ]
    assert batches == [sorted(batch) for batch in truth[0]["seen"]]
    for epoch in range(EPOCHS):
        seen = [index for batch in batches[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH] for index in batch]
        assert sorted(seen) == list(range(SAMPLES))
    assert parts[-1][0]["counters"]["samples"] == EPOCHS * SAMPLES
