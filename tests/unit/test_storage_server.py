"""The S3 server of the tests itself: it kills, holds and serves other processes as it says."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from stratrun.storage import Folder


def folder_in(s3):
    return Folder(s3.url, **s3.options)


def in_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("when", "keys"), [("kill_at", ["a"]), ("kill_after", ["a", "b"])])
def test_a_child_is_killed_at_the_request_that_was_named(s3, when, keys):
    def work():
        s3.set_faults(**{when: 2}, pid=os.getpid(), methods=("PUT",))
        for name in "abc":
            folder_in(s3).write_bytes(name, b"1")

    assert in_child(work) == -signal.SIGKILL
    s3.set_faults()
    assert [key.rpartition("/")[2] for key in s3.files()] == keys


def test_a_request_is_held_until_it_is_released(s3):
    with s3.faults(hold_at=1, methods=("PUT",)), ThreadPoolExecutor(1) as pool:
        writing = pool.submit(folder_in(s3).write_bytes, "a", b"1")
        s3.wait_until_held()
        assert s3.files() == []
        s3.release()
        writing.result(10)
    assert len(s3.files()) == 1


def in_rank(url, options):
    Folder(url, **options).write_bytes(f"rank-{os.environ['RANK']}", b"1")


def test_ranks_reach_the_server(s3, two_ranks):
    two_ranks(in_rank, s3.url, s3.options)
    assert folder_in(s3).names() == ["rank-0", "rank-1"]
