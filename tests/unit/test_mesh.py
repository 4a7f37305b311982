"""One mesh for all runs on one default group, and another for the next group."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from stratrun.distributed import ProcessEnv, join, leave
from stratrun.strategies.mesh import ranks_mesh
from tests.ranks import Ranks

CPU = torch.device("cpu")


def on_two_groups() -> tuple[bool, bool, bool, list[float]]:
    kept, sums = [], []
    for _ in range(2):
        join(ProcessEnv.from_environ(os.environ), "gloo", timedelta(seconds=30), CPU)
        mesh = ranks_mesh(CPU, replicate=2, shard=-1)
        kept.append((mesh, ranks_mesh(CPU, replicate=2, shard=1), ranks_mesh(CPU, data=-1, model=1)))
        total = torch.ones(1)
        dist.all_reduce(total, group=mesh.get_group("replicate"))
        sums.append(total.item())
        leave()
    (first, again, other), (next_one, *_) = kept
    return first is again, first is other, first is next_one, sums


def test_the_same_sizes_are_the_same_mesh_for_as_long_as_the_default_group_stands(bare_ranks: Ranks) -> None:
    assert bare_ranks(on_two_groups) == [(True, False, False, [2.0, 2.0])] * 2
