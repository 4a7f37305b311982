"""Work beside the run: one at a time, and its failure raised by all ranks at the same iteration."""

import os
import threading
import time
from datetime import timedelta

import pytest

from stratrun.checkpoint.background import Background
from stratrun.distributed import Collectives, ProcessEnv, control_group, message_board
from stratrun.errors import CheckpointError


def alone(limit=5.0):
    return Background(Collectives(ProcessEnv()), limit)


def begin(background, work, what="saving"):
    background.begin(work, background.clear(what))


def test_work_goes_on_beside_the_caller_and_wait_returns_when_it_has_ended():
    background, begun, go_on, log = alone(), threading.Event(), threading.Event(), []

    def work():
        begun.set()
        go_on.wait()
        log.append("written")

    begin(background, work, "saving")
    begun.wait()
    assert log == []
    go_on.set()
    background.wait()
    assert log == ["written"]


def test_a_second_piece_of_work_waits_for_the_first_and_drops_none():
    background, log = alone(), []
    for number in range(5):

        def work(number=number):
            time.sleep(0.01)
            log.append(number)

        begin(background, work, "saving")
        assert len(log) >= number
    background.wait()
    assert log == [0, 1, 2, 3, 4]


def fail():
    raise CheckpointError("the disk is full")


def test_a_failure_is_raised_at_the_next_iteration_and_once_only():
    background = alone()
    background.raise_if_failed(3)
    begin(background, fail, "saving")
    background._done.wait(5)
    with pytest.raises(CheckpointError, match="the disk is full"):
        background.raise_if_failed(4)
    background.raise_if_failed(5)
    background.wait()


def test_a_failure_is_raised_by_the_next_save_and_by_wait():
    background = alone()
    begin(background, fail, "saving")
    with pytest.raises(CheckpointError, match="the disk is full"):
        begin(background, lambda: None, "saving again")
    begin(background, fail, "saving")
    with pytest.raises(CheckpointError, match="the disk is full"):
        background.wait()
    background.wait()


def test_work_that_never_ends_is_an_error_of_the_iteration_that_finds_it_overdue():
    background, release = alone(limit=0.2), threading.Event()
    begin(background, release.wait, "saving step 5 to s3://bucket")
    background.raise_if_failed(1)
    time.sleep(0.3)
    with pytest.raises(CheckpointError, match=r"saving step 5 to s3://bucket has not ended within 0\.2 s"):
        background.raise_if_failed(2)
    release.set()


def drift():
    """Iterations of ranks that are apart by some, with a failure that the slow rank learns of late."""
    env = ProcessEnv.from_environ(os.environ)
    ranks = Collectives(env, control_group(env, timedelta(seconds=20)), message_board(env), tells=True)
    background = Background(ranks, 20.0)
    raised = []
    for round_ in range(8):

        def work(round_=round_):
            ranks.barrier()
            time.sleep(0.003 * round_ * (1 + ranks.rank))
            ranks.agree(CheckpointError("no room") if ranks.rank == 1 else None, "saving")

        begin(background, work, "saving")
        for iteration in range(round_ * 1000, round_ * 1000 + 1000):
            time.sleep(0.001 if ranks.rank else 0.0017)
            try:
                background.raise_if_failed(iteration)
            except CheckpointError as error:
                raised.append((iteration, str(error)))
                break
    ranks.close()
    return raised


def test_ranks_whose_loops_are_apart_raise_at_the_same_iteration(two_ranks):
    first, second = two_ranks(drift)
    assert len(first) == 8
    assert first == second
    assert all(told == "saving failed on rank 1: no room" for _, told in first)
