"""Training that is killed again and again ends as if nothing had been."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.kill_job import INTERVAL, KEEP, Job, killed_jobs
from tests.end_to_end.resume_job import Case, differences, on, train
from tests.end_to_end.test_resume_every_step import MOVING
from tests.ranks import Ranks

EPOCHS, PER_EPOCH = 6, 9
ITERATIONS = EPOCHS * PER_EPOCH
CASE: dict[str, Any] = {
    "samples": 33,
    "accumulate": 2,
    "train_cfg": {"max_epochs": EPOCHS, "val_interval": 2},
    "options": {"loggers": ["jsonl"]},
}
# Of the state at the end; what a process logged and saw before it was killed is gone with it.
STATE = (
    "weights",
    "engine",
    "schedules",
    "counters",
    "metrics",
    "hooks",
    "windows",
    "torch",
    "python",
    "numpy",
)


def check(jobs: list[Job], bound: int) -> None:
    whole, *killed = jobs
    truth, records = whole.finals(), whole.records()
    assert truth[0]["counters"]["iter"] == ITERATIONS and whole.attempts() == [(0, ITERATIONS)]
    assert len(records[0]) > ITERATIONS / 3 and not records[1]
    kept = [f"checkpoints/step-{step:08d}" for step in range(ITERATIONS, 0, -INTERVAL)][:KEEP]
    for job in killed:
        assert job.damaged == []
        for found, wanted in zip(job.finals(), truth, strict=True):
            assert differences({k: found[k] for k in STATE}, {k: wanted[k] for k in STATE}) == []
        assert lost(job, bound) == []
        # One that was killed when it had only to remove the oldest had nothing to do when it began again.
        spared = f"checkpoints/step-{ITERATIONS - KEEP * INTERVAL:08d}"
        over = {spared} if job.attempts()[-1][0] == ITERATIONS else set()
        assert sorted({*job.leftovers()} - over) == sorted(["checkpoints", "runs", *kept])
        # Lines of iterations that were done again are there again, and the same.
        assert job.records() == records


def lost(job: Job, bound: int) -> list[str]:
    """Where more was lost. An iteration is saved before it is written down here."""
    return [
        f"{came_to} iterations were done, and the next process began after {began}"
        for (_, came_to), (began, _) in pairwise(job.attempts())
        if not came_to - bound <= began <= came_to + 1
    ]


# A save in the background is committed before the next one begins.
BACKGROUND, AT_ONCE = 2 * INTERVAL, INTERVAL


@pytest.mark.parametrize(("seed", "asynchronous"), [(0, True), (1, True), (2, False)])
def test_killed_at_ten_moments_a_run_ends_with_the_weights_of_one_that_was_not(
    seed: int, asynchronous: bool, bare_ranks: Ranks, tmp_path: Path
) -> None:
    options = {**CASE["options"], "checkpoint_cfg": {"asynchronous": asynchronous}}
    case = Case(**{**CASE, "options": options})
    (jobs, _) = bare_ranks(killed_jobs, str(tmp_path), case, 10, seed, {})
    assert sum(job.kills for job in jobs) == 10
    assert sum(job.within_saves for job in jobs) >= 2
    check(jobs, BACKGROUND if asynchronous else AT_ONCE)


def test_with_one_of_two_ranks_killed_five_times_it_does_too(bare_ranks: Ranks, tmp_path: Path) -> None:
    (jobs, _) = bare_ranks(killed_jobs, str(tmp_path), Case(size=2, **CASE), 5, 3, {})
    assert sum(job.kills for job in jobs) == 5
    check(jobs, BACKGROUND)


def test_killed_four_times_with_averages_spikes_schedules_and_a_frozen_part_it_does_too(
    bare_ranks: Ranks, tmp_path: Path
) -> None:
    case = Case(**{**CASE, **MOVING, "options": {**MOVING["options"], **CASE["options"]}})
    (jobs, _) = bare_ranks(killed_jobs, str(tmp_path), case, 4, 5, {})
    check(jobs, BACKGROUND)
    state = dict(jobs[0].finals()[0]["hooks"])
    assert state["EMAHook"]["averages"] and state["SpikeHook"]["seen"] == ITERATIONS
    assert jobs[0].finals()[0]["counters"]["skipped"] > 2


def test_a_start_removes_what_was_left_before_the_first_save_and_after_the_last(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    save = {"interval": INTERVAL, "by_epoch": False, "keep_last": KEEP}
    folder = tmp_path / "checkpoints"
    begun = folder / ".staging-step-00000003.5ca1ab1e.0123abcd"
    begun.mkdir(parents=True)
    on(two_ranks, 1, train, Case(), str(tmp_path), save=save, resume="auto")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["step-00000009", "step-00000010"]
    for left in ("trash", "staging"):
        shutil.copytree(folder / names[0], folder / f".{left}-step-00000006.5ca1ab1e.0123abcd")
    foreign = folder / ".staging-step-00000006.another.0123abcd"
    foreign.mkdir()
    on(two_ranks, 1, train, Case(), str(tmp_path), save=save, resume="auto")
    assert sorted(path.name for path in folder.iterdir()) == [foreign.name, *names]
