"""Overflows in gradients of which each rank holds a part: all ranks must drop the update, or none."""

import math

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from stratrun.precision import FP16MixedPrecision
from stratrun.testing import Ranks


def stepped() -> list[tuple[bool, list[bool]]]:
    """Whether there is an update, and which parameters it changes, for an overflow nowhere, here or there."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    ways: list[tuple[Placement, ...] | None] = [
        (Replicate(), Replicate()),
        None,
        (Shard(0), Replicate()),
        (Replicate(), Shard(0)),
        (Shard(0), Shard(1)),
    ]
    found = []
    for spoiled in (None, *range(2, len(ways))):
        precision = FP16MixedPrecision(init_scale=8.0)
        precision.setup("cpu")
        parameters = []
        for way in ways:
            value, gradient = torch.ones(4, 4), torch.full((4, 4), 16.0)
            if len(parameters) == spoiled:
                gradient[3, 3] = math.inf  # on the ranks that have this corner, as far as it is divided
            if way is not None:
                value, gradient = (distribute_tensor(t, mesh, way) for t in (value, gradient))
            parameters.append(nn.Parameter(value))
            parameters[-1].grad = gradient
        optimizer = torch.optim.SGD(parameters, lr=0.25, foreach=False)
        precision.backward(torch.zeros((), requires_grad=True))  # which makes the scale
        precision.unscale(optimizer)
        made = precision.step(optimizer)
        whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]
        found.append((made, [bool((p == 0.5).all()) for p in whole]))
    return found


def test_an_overflow_on_one_rank_is_one_on_all_whatever_the_first_parameter_is(four_ranks: Ranks) -> None:
    for fine, *overflown in four_ranks(stepped):
        assert fine == (True, [True] * 5)
        assert overflown == [(False, [False] * 5)] * 3
