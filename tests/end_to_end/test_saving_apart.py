"""Ranks that are broken off one without the other, and what is then said of the checkpoints there are."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stratrun.errors import CheckpointError
from stratrun.hooks import Hook
from stratrun.runner import rescue
from tests.end_to_end import resume_job
from tests.end_to_end.resume_job import Case, on
from tests.end_to_end.test_saving_times import AT, SAVE, Broken, Fault, saved, train_broken
from tests.ranks import Ranks


def one_alone(work_dir: str) -> Any:
    """Each rank breaks off by itself, and hears nothing of the other."""
    rescue.PATIENCE = 0.5
    original = rescue.Rescue._word
    rescue.Rescue._word = property(lambda self: f"alone/{self._ranks.rank}")  # type: ignore[misc]
    try:
        return train_broken(Case(2), work_dir, "forward", Broken)
    finally:
        rescue.Rescue._word = original  # type: ignore[method-assign]
        rescue.PATIENCE = 10.0


def test_a_rank_that_the_others_do_not_come_to_does_not_save(two_ranks: Ranks, tmp_path: Path) -> None:
    told = on(two_ranks, 2, one_alone, str(tmp_path))
    for rank, notes in enumerate(told):
        assert notes == [
            f"stratrun: nothing was saved: not every rank came to save within 0.5 s of rank {rank}; "
            "there is no checkpoint yet"
        ]
    assert saved(tmp_path) == []


def one_first(work_dir: str, at: int) -> tuple[float, list[str]]:
    """Rank 1 breaks off where nothing can be saved, and rank 0 a moment later where it could."""
    start = time.monotonic()
    if int(os.environ["RANK"]):
        notes = train_broken(Case(2), work_dir, "after", Broken, at=at)
    else:
        notes = train_broken(Case(2), work_dir, "hook", Broken, at=at + 1)
    return time.monotonic() - start, notes


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (AT, f"iteration {AT + 1} has ended after iteration {AT}, and not all hooks"),
        (0, "there is nothing to save"),
    ],
)
def test_ranks_do_not_wait_for_one_that_knows_why_it_cannot_save(
    at: int, reason: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    for seconds, notes in on(two_ranks, 2, one_first, str(tmp_path), at):
        assert seconds < rescue.PATIENCE - 2
        for note in notes:
            assert f"stratrun: nothing was saved: on rank 1 {reason}" in note
    assert saved(tmp_path) == []


def apart(work_dir: str) -> tuple[float, list[str]]:
    """Both could save, one an iteration further than the other, which are not exchanging gradients."""
    start = time.monotonic()
    at = AT + int(os.environ["RANK"])
    notes = train_broken(Case(2, accumulate=3), work_dir, "hook", Broken, at=at)
    return time.monotonic() - start, notes


def test_ranks_that_come_with_different_iterations_do_not_save(two_ranks: Ranks, tmp_path: Path) -> None:
    for seconds, (note,) in on(two_ranks, 2, apart, str(tmp_path)):
        assert seconds < rescue.PATIENCE - 2
        assert f"the ranks, by number, were broken off after iterations {AT}, {AT + 1}" in note
    assert saved(tmp_path) == []


class Misled(Hook):
    """Has the run remember a checkpoint that is older than the newest."""

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == AT + 1:
            runner.checkpointer.wait()
            runner.last_checkpoint = f"{runner.work_dir}/checkpoints/step-00000003"


class InTheWay(Hook):
    """Has the next save fail."""

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == 1:
            Path(runner.work_dir, "checkpoints").write_bytes(b"")


def train_broken_beside(case: Case, work_dir: str, save: Any) -> list[str]:
    hooks = (*case.hooks, Fault("after", Broken))
    return notes_of(Broken, replace(case, hooks=hooks), work_dir, save)


def saving_in_vain(work_dir: str) -> list[str]:
    save = {**SAVE, "interval": 3, "by_epoch": False}
    return notes_of(CheckpointError, Case(hooks=(InTheWay(),)), work_dir, save)


def notes_of(error: type[BaseException], case: Case, work_dir: str, save: Any) -> list[str]:
    try:
        resume_job.train(case, work_dir, save=save)
    except error as caught:
        return [note for note in getattr(caught, "__notes__", []) if note.startswith("stratrun:")]
    raise AssertionError("the run was not broken off")


def test_an_older_checkpoint_is_not_said_to_be_written(two_ranks: Ranks, tmp_path: Path) -> None:
    save = {**SAVE, "interval": 3, "by_epoch": False}
    case = Case(hooks=(Misled(),))
    (notes,) = on(two_ranks, 1, train_broken_beside, case, str(tmp_path), save)
    assert notes[0].endswith(f"the newest checkpoint is {tmp_path}/checkpoints/step-{AT:08d}")


def test_a_save_that_has_failed_is_not_said_to_be_under_way(two_ranks: Ranks, tmp_path: Path) -> None:
    (notes,) = on(two_ranks, 1, saving_in_vain, str(tmp_path))
    assert len(notes) == 1 and notes[0].endswith(
        "nothing was saved: saving is what failed; there is no checkpoint yet"
    )
