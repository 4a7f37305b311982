"""A process that dies at any request of a save to S3 leaves the newest committed checkpoint whole.

It dies at each request that changes the store. At one that reads it leaves what it would at the next change,
or at its end; with STRATRUN_TEST_EVERY_REQUEST=1 in the environment it dies at each of those too.
"""

import os
import signal
from contextlib import contextmanager
from functools import cache

import pytest
from aiobotocore.session import get_session

from stratrun.checkpoint.discovery import committed_steps
from stratrun.storage import Folder, Retry
from tests.checkpoints import checkpointer, own_state, same
from tests.disks import in_child
from tests.unit.test_checkpoint_crash import as_if_large, state

QUICK = Retry(base=0.01, cap=0.05)
CHANGES = ("PUT", "POST", "DELETE")
EVERY = bool(os.environ.get("STRATRUN_TEST_EVERY_REQUEST"))


@cache
def described():
    """What botocore knows of S3, parsed once and not in each child: that takes longer than a save."""
    return get_session()


def folder_in(s3):
    # Nor are the certificates of all authorities read, for an address without any.
    client = {**s3.options["client_kwargs"], "verify": False}
    return Folder(s3.url, QUICK, session=described(), **{**s3.options, "client_kwargs": client})


def save_and_retain(s3, step):
    checkpointer(folder_in(s3)).save(step, state(step), own_state(step), keep_last=2)


def check_whole(s3, what):
    """The steps there, newest last: all whole, and the newest is the one that is loaded."""
    folder = folder_in(s3)
    steps = committed_steps(folder)
    ours = checkpointer(folder)
    for step in reversed(steps):
        loaded = ours.load("latest" if step == steps[-1] else step)
        assert loaded.meta["step"] == step, what
        assert same(loaded.shared, state(step)) and same(loaded.own, own_state(step)), what
    return steps


@contextmanager
def killing(s3, fatal):
    """Kills this process when that request comes."""
    s3.set_faults(kill_at=fatal, pid=os.getpid(), methods=() if EVERY else CHANGES)
    yield
    s3.set_faults()


def points_of(s3, work):
    """At how many requests of this it can die."""
    before = len(s3.log())
    work()
    return len([method for method, _, _ in s3.log()[before:] if EVERY or method in CHANGES])


def folders_of(s3):
    return sorted({key.split("/")[1] for key in s3.files()})


@pytest.mark.timeout(150)
def test_killed_at_any_request_the_newest_committed_one_is_whole(s3, monkeypatch):
    as_if_large(monkeypatch)
    for step in (1, 2):
        save_and_retain(s3, step)
    assert len([file for file in s3.files() if "-part-" in file]) == 6
    assert [query for _, query, _ in s3.log() if "partNumber=3" in query]
    step, codes, newest = 3, [], set()
    points = points_of(s3, lambda: save_and_retain(s3, 3))
    for fatal in range(1, 200):
        step += 1

        def work(step=step, fatal=fatal):
            with killing(s3, fatal):
                save_and_retain(s3, step)

        codes.append(in_child(work))
        s3.set_faults()
        steps = check_whole(s3, f"killed at request {fatal}: {s3.files()}")
        newest.add(steps[-1] == step)
        # The next success removes what was left, files of the dead attempt and of half a removal.
        step += 1
        save_and_retain(s3, step)
        steps = committed_steps(folder_in(s3))
        assert folders_of(s3) == [f"step-{step:08d}" for step in steps], f"killed at request {fatal}"
        assert (len(steps), steps[-1]) == (2, step)
        if codes[-1] == 0:
            break
    assert codes == [-signal.SIGKILL] * (fatal - 1) + [0]
    assert fatal == points + 1 > (25 if EVERY else 13)
    assert newest == {False, True}
    # The parts of a file that was never finished are no files, and the store's to clear up: see docs.
    assert 0 < s3.pending_uploads() < fatal


@pytest.mark.timeout(150)
def test_killed_while_a_damaged_one_is_written_anew_the_older_one_is_whole(s3):
    save_and_retain(s3, 1)
    first = points_of(s3, lambda: save_and_retain(s3, 2))
    codes = []
    for fatal in range(1, 200):
        save_and_retain(s3, 2)
        folder_in(s3).write_bytes("step-00000002/index.json", b"{}")

        def work(fatal=fatal):
            with killing(s3, fatal):
                save_and_retain(s3, 2)

        codes.append(in_child(work))
        s3.set_faults()
        loaded = checkpointer(folder_in(s3)).load()
        assert same(loaded.shared, state(loaded.meta["step"])), f"killed at request {fatal}"
        if loaded.meta["step"] == 2:  # committed; what follows is for the test above
            break
    # The last change commits; then it only reads.
    assert codes == [-signal.SIGKILL] * (fatal - 1) + [-signal.SIGKILL if EVERY else 0]
    assert fatal > (15 if EVERY else first)  # what is damaged is removed before, too
