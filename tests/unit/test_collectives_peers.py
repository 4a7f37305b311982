"""What a rank learns of others that do not come."""

import os
import signal
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from stratrun.distributed import Collectives, ProcessEnv, control_group, join, message_board
from stratrun.errors import PeerError
from tests.end_to_end.kill_job import start, variables_of


def saving(seconds: float = 3.0) -> Collectives:
    env = ProcessEnv.from_environ(os.environ)
    return Collectives(env, control_group(env, timedelta(seconds=seconds)), message_board(env), tells=True)


def late_one():
    ranks = saving(1.5)
    ranks.barrier()
    start = time.monotonic()
    try:
        if ranks.rank == 1:
            time.sleep(3)  # it does not come in time
        else:
            ranks.gather("here")
    except PeerError as error:
        return str(error), time.monotonic() - start
    return None


def test_a_rank_that_does_not_come_in_time_is_named(two_ranks):
    (told, seconds), _ = two_ranks(late_one)
    assert "rank 1 is gone, or did not come to it in time" in told
    assert seconds < 6
    two_ranks.stop()  # what is left of the exchange that failed


def killed_one(tells: bool):
    """Each rank in a process of its own; rank 2 is killed before an exchange that the others come to."""
    if os.environ["RANK"] != "0":
        return None
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(4)]
        pids = [
            start(_Lost(file, tells), {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", **variables})
            for file, variables in zip(files, variables_of(4), strict=True)
        ]
        for pid in pids:
            os.waitpid(pid, 0)
        return [file.read_text() if file.exists() else None for file in files]


class _Lost:
    def __init__(self, file: Path, tells: bool) -> None:
        self.file, self.tells = file, tells

    def __call__(self) -> None:
        env = ProcessEnv.from_environ(os.environ)
        join(env, "gloo", timedelta(seconds=20), torch.device("cpu"))
        board = message_board(env)
        ranks = Collectives(env, control_group(env, timedelta(seconds=20)), board, tells=self.tells)
        ranks.gather(0)
        if ranks.rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            ranks.gather(1)
        except PeerError as error:
            self.file.write_text(str(error))


@pytest.mark.parametrize("tells", [False, True])
def test_of_ranks_that_fail_one_after_another_all_name_the_one_that_was_killed(bare_ranks, tells):
    told, _ = bare_ranks(killed_one, tells)
    assert told[2] is None
    for rank in (0, 1, 3):
        assert "rank 2 is gone" in told[rank], told


def come():
    ranks = saving()
    here = []
    for label, seconds in (("together", 5.0), ("alone", 0.3)):
        if label == "together" or ranks.rank == 0:
            here.append(ranks.board.hear(label, str, seconds) is not None)
    ranks.barrier()
    ranks.close()
    return here


def test_whether_all_ranks_come_to_a_place_is_told_without_an_exchange(two_ranks):
    assert two_ranks(come) == [[True, False], [True]]


def scattered():
    ranks = saving()
    got = ranks.scatter_from_main(["for 0", "for 1"] if ranks.is_main else None)
    ranks.close()
    return got


def test_each_rank_gets_its_own_of_what_the_main_rank_scatters(two_ranks):
    assert two_ranks(scattered) == ["for 0", "for 1"]


def test_one_process_is_always_all_there_are():
    assert Collectives(ProcessEnv()).board.hear("anywhere", lambda: "here", 0.0) == ["here"]


def come_again():
    """The same place several times: alone in vain, then together, then alone once more."""
    ranks = saving()
    here = []
    for round_, seconds in enumerate((0.3, 5.0, 0.3)):
        if round_ == 1 or ranks.rank == 0:
            here.append(ranks.board.hear("crash", str, seconds) is not None)
        ranks.barrier()
    ranks.close()
    return here


def test_who_came_to_a_place_before_is_not_taken_to_be_there_again(two_ranks):
    assert two_ranks(come_again) == [[False, True, False], [True]]


def speak():
    ranks = saving()
    before = ranks.board.word("news")
    ranks.barrier()
    first = ranks.board.leave_word("news", f"from {ranks.rank}") if ranks.rank == 1 else None
    ranks.barrier()
    heard = ranks.board.leave_word("news", f"from {ranks.rank}"), ranks.board.word("news")
    told = ranks.board.hear("place", lambda: f"at {ranks.rank}", 5.0)
    ranks.close()
    return before, first, heard, told


def test_the_first_word_stays_and_all_say_where_they_are(two_ranks):
    (before, _, heard, told), (_, first, other, _) = two_ranks(speak)
    assert before is None and first == "from 1"
    assert heard == other == ("from 1", "from 1")
    assert told == ["at 0", "at 1"]


def after_the_last():
    ranks = saving()
    ranks.close()
    try:
        ranks.gather(1)
    except PeerError as error:
        return str(error)
    return None


def test_no_exchange_goes_over_the_default_group_once_its_own_is_closed(two_ranks):
    told = two_ranks(after_the_last)
    assert all("it comes after the last one" in text for text in told)


def after_one_that_broke():
    ranks = saving(1.0)
    ranks.barrier()
    told = []
    for _ in range(2 if ranks.rank == 0 else 0):
        try:
            ranks.gather("here")
        except PeerError as error:
            told.append((str(error), time.monotonic()))
    time.sleep(2.5 if ranks.rank else 0)
    return told


def test_after_an_exchange_that_broke_off_the_next_fails_at_once(two_ranks):
    ((first, at), (second, then)), _ = two_ranks(after_one_that_broke)
    assert "broke off: rank 1 is gone" in first
    assert "no exchange between ranks is possible any more" in second and "rank 1 is gone" in second
    assert then - at < 0.5
    two_ranks.stop()
