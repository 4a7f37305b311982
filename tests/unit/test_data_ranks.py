"""Ranks that work on the same samples, as far as exchanges between those with different ones go."""

import os
from datetime import timedelta

import torch

from stratrun.distributed import Collectives, DataRanks, ProcessEnv, control_group


def exchanged():
    env = ProcessEnv.from_environ(os.environ)
    ranks = Collectives(env, control_group(env, timedelta(seconds=20)))
    data = DataRanks(ranks, 2)
    given = torch.tensor([10.0**env.rank])
    results = (
        (data.rank, data.world_size),
        data.sum(given).tolist(),
        data.gather(env.rank),
        data.gather_to_main(env.rank),
        data.from_main(env.rank),
        given.tolist(),
    )
    ranks.close()
    return results


def test_of_ranks_with_the_same_samples_the_first_counts_and_all_are_told(four_ranks):
    for rank, (place, total, gathered, on_main, from_main, given) in enumerate(four_ranks(exchanged)):
        assert place == (rank // 2, 2)
        assert total == [1.0 + 100.0]
        assert gathered == [0, 2]
        assert on_main == ([0, 2] if rank == 0 else None)
        assert from_main == 0
        assert given == [10.0**rank]
