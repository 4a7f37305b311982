"""What a rank learns of others that do not come."""

import os
import time
from datetime import timedelta

from stratrun.distributed import Collectives, ProcessEnv, control_group, message_board
from stratrun.errors import PeerError


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


def come():
    ranks = saving()
    here = []
    for label, seconds in (("together", 5.0), ("alone", 0.3)):
        if label == "together" or ranks.rank == 0:
            here.append(ranks.all_here(label, seconds))
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
    assert Collectives(ProcessEnv()).all_here("anywhere", 0.0)
