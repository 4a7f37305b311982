from typing import TYPE_CHECKING, Any

import torch

from stratrun.errors import ConfigError
from stratrun.registry import STRATEGIES
from stratrun.strategies.mesh import REPLICATE, SHARD, natural_replicas, ranks_mesh
from stratrun.strategies.shard_options import ShardOptions
from stratrun.strategies.sharded import ShardedStrategy

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@STRATEGIES.register_module("hsdp")
class HSDPStrategy(ShardedStrategy):
    """Replicas of a model, each spread over neighbouring ranks.

    Parameters are gathered within a replica only; gradients are averaged within it, and then over replicas.

    Args:
        replicate: How many replicas: by default one for each machine, or two on a single machine.
        sharding: The options of `FSDPStrategy`.
    """

    name = "hsdp"

    def __init__(self, *, replicate: int | None = None, **sharding: Any) -> None:
        number = isinstance(replicate, int) and not isinstance(replicate, bool)
        if replicate is not None and not (number and replicate > 0):
            raise ConfigError(f"strategy='hsdp': replicate={replicate!r} must be a whole number, from 1 on")
        super().__init__(ShardOptions.parse(sharding, "strategy='hsdp'"))
        self.replicate: int | bool = natural_replicas() if replicate is None else replicate
        self.multiple_of: int | bool = self.replicate

    def mesh(self, device: torch.device) -> "DeviceMesh":
        return ranks_mesh(device, **{REPLICATE: self.replicate, SHARD: -1})
