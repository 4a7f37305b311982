"""The ranks as a mesh, over whose dimensions a model is spread."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import distributed as dist

from stratrun.distributed import shared

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

REPLICATE, SHARD = "replicate", "shard"


def ranks_mesh(device: torch.device, **sizes: int) -> "DeviceMesh":
    """All ranks, neighbours along the last dimension first; the same mesh for the same sizes.

    Args:
        sizes: Of each dimension, by name; one may be -1, for all the ranks that the others leave.
    """
    from torch.distributed.device_mesh import init_device_mesh

    known = 1
    for size in sizes.values():
        known *= abs(size)
    shape = tuple(dist.get_world_size() // known if size == -1 else size for size in sizes.values())
    names = tuple(sizes)
    return shared(
        (device.type, names, shape), lambda: init_device_mesh(device.type, shape, mesh_dim_names=names)
    )


def natural_replicas(environ: Mapping[str, str] = os.environ) -> int:
    """How many replicas of a model the ranks make: one for each machine, or two on a single machine."""
    world = int(environ.get("WORLD_SIZE", "1"))
    local = int(environ.get("LOCAL_WORLD_SIZE", "0")) or world
    machines = world // local
    return machines if machines > 1 else min(2, world)
