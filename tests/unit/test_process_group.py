"""The ranks of a run find each other, whatever runs before it left behind."""

import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from stratrun.distributed import ProcessEnv, join, leave
from tests.ranks import Ranks

LATE = 1.0  # by which the main rank comes after the other: long enough to be looked for in vain
LIMIT = timedelta(seconds=10)


def sums_of_ranks(port: int, groups: int = 1, attempt: int = 0, late: float = 0.0) -> list[float]:
    """Join and leave by a store that outlives the groups, as torchrun's does."""
    os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt)
    env = ProcessEnv.from_environ()
    sums = []
    for number in range(groups):
        if env.rank == 0:
            time.sleep(LATE if number else late)
        assert join(env, "gloo", LIMIT, torch.device("cpu"))
        total = torch.tensor(env.rank + 1.0)
        dist.all_reduce(total)
        sums.append(total.item())
        leave()
    return sums


@pytest.fixture
def store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def test_ranks_that_were_started_again_do_not_look_for_those_that_died(
    store: dist.TCPStore, bare_ranks: Ranks
) -> None:
    assert bare_ranks(sums_of_ranks, store.port) == [[3.0], [3.0]]
    bare_ranks.stop()
    assert bare_ranks(sums_of_ranks, store.port, attempt=1, late=LATE) == [[3.0], [3.0]]


def test_a_second_run_of_a_process_does_not_look_for_the_groups_of_the_first(
    store: dist.TCPStore, bare_ranks: Ranks
) -> None:
    assert bare_ranks(sums_of_ranks, store.port, groups=2) == [[3.0, 3.0], [3.0, 3.0]]
