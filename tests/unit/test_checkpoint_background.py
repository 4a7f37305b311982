"""Work beside the run: one at a time, and its failure raised by all ranks at the same iteration."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest

from stratrun.checkpoint.background import Background
from stratrun.distributed import Collectives, ProcessEnv, control_group, message_board
from stratrun.errors import CheckpointError
from stratrun.storage import Folder
from tests.checkpoints import checkpointer, full_disk, own_state, shared_state


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
        for iteration in range(round_ * 50_000, (round_ + 1) * 50_000):
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


def test_what_is_stuck_keeps_the_next_from_beginning(monkeypatch):
    monkeypatch.setattr("stratrun.checkpoint.background._GRACE", 0.1)
    background, release = alone(limit=0.1), threading.Event()
    begin(background, release.wait)
    with pytest.raises(CheckpointError, match="has not ended within"):
        background.wait()
    with pytest.raises(CheckpointError, match="saving 2 cannot begin: the one before is still stuck"):
        background.clear("saving 2")
    release.set()
    background.clear("saving 3")


@pytest.mark.parametrize("error", [SystemExit(1), RuntimeError("odd")])
def test_no_error_of_the_thread_is_lost(error):
    def leave():
        raise error

    background = alone()
    begin(background, leave)
    with pytest.raises(CheckpointError, match=f"saving failed on rank 0: {type(error).__name__}"):
        background.wait()


def test_an_interrupt_of_the_wait_leaves_the_work_to_be_waited_for(monkeypatch):
    background, release, log = alone(), threading.Event(), []

    def work():
        release.wait()
        log.append("written")

    begin(background, work)
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        background.wait()
    release.set()
    background.wait()
    assert log == ["written"]


def test_memory_that_cannot_be_made_ahead_is_no_error(tmp_path, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise MemoryError("too much")

    caplog.set_level("INFO")
    ours = checkpointer(tmp_path)
    monkeypatch.setattr(ours._staging, "reserve", refuse)
    ours.reserve(10)
    for thread in threading.enumerate():
        if thread.name == "stratrun-reserve":
            thread.join()
    assert "too much" in caplog.text


def test_close_waits_for_the_save_under_way_and_raises_what_it_failed_with(tmp_path, monkeypatch):
    write = Folder.write_blocks
    monkeypatch.setattr(Folder, "write_blocks", lambda *a: time.sleep(0.2) or write(*a))
    ours = checkpointer(tmp_path / "good")
    ours.save(1, shared_state(1), own_state(1), background=True)
    ours.close()
    assert Folder(tmp_path / "good").names() == ["step-00000001"]
    other = checkpointer(tmp_path / "bad")
    with full_disk("shard"):
        other.save(1, shared_state(1), own_state(1), background=True)
        with pytest.raises(CheckpointError, match="No space left"):
            other.close()


SCRIPT = """
import time
import torch
from stratrun.checkpoint import Checkpointer
from stratrun.distributed import Collectives, ProcessEnv
from stratrun.storage import Folder

write = Folder.write_blocks
Folder.write_blocks = lambda *a: time.sleep({seconds}) or write(*a)
ours = Checkpointer(Folder({place!r}), Collectives(ProcessEnv()), run_id="run", deadline={deadline})
ours.reserve(1 << 28)
ours.save(1, {{"x": torch.ones(3)}}, background=True)
"""


@pytest.mark.parametrize("stuck", [False, True])
def test_a_process_that_ends_without_a_word_waits_for_its_save_but_not_for_ever(stuck, tmp_path):
    values = {"place": str(tmp_path / "run"), "seconds": 60 if stuck else 0.3, "deadline": 1 if stuck else 50}
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(**values)], capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == 0, ended.stderr
    names = Folder(tmp_path / "run").names()
    if stuck:
        assert "has not ended within 1 s" in ended.stderr and time.monotonic() - began < 40
    else:
        assert names == ["step-00000001"] and not ended.stderr
