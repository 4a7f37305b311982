from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stratrun.errors import ConfigError
from stratrun.registry import STRATEGIES
from stratrun.spread import is_spread
from stratrun.strategies.mesh import ranks_mesh
from stratrun.strategies.shard_options import ShardOptions
from stratrun.strategies.sharded import ShardedStrategy
from stratrun.strategies.styles import parse_plan

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DATA, MODEL = "data", "model"


@STRATEGIES.register_module("tensor_parallel")
class TensorParallelStrategy(ShardedStrategy):
    """Neighbouring ranks compute each layer together, on the same samples, each with its part of the layer.

    All ranks that have the same part are spread over as by `FSDPStrategy`, and have different samples: with
    as many ranks as `size`, there is no such second dimension. Whatever counts ranks by their samples, as
    batch sizes, evaluation and logging do, counts such a group as one.

    Args:
        plan: How each layer is divided, by names as in ``"blocks.*.up"``. See `Style` for what there is.
        size: How many ranks compute together. The number of ranks must be a multiple of it.
        shard: Arguments of `FSDPStrategy`, for the dimension over which samples differ.
    """

    name = "tensor_parallel"

    def __init__(self, *, plan: Mapping[str, Any], size: int, shard: Mapping[str, Any] | None = None) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"strategy: size={size!r} must be the number of ranks that compute together")
        if shard is not None and not isinstance(shard, Mapping):
            raise ConfigError(f"strategy: shard={shard!r} must be a dict of arguments of 'fsdp'")
        super().__init__(ShardOptions.parse(shard or {}, "strategy: shard"))
        self._plan = parse_plan(plan)
        self.multiple_of: int = size
        self.ranks_per_batch: int = size
        self._mesh: DeviceMesh | None = None

    def mesh(self, device: torch.device) -> "DeviceMesh":
        return self._ranks(device)[DATA]

    def divide(self, module: nn.Module, device: torch.device) -> None:
        # Only now, as `ShardedStrategy.place` says.
        from stratrun.strategies.sharding import model_of
        from stratrun.strategies.splitting import divide

        divide(model_of(module), self._plan, self._ranks(device)[MODEL])

    def _ranks(self, device: torch.device) -> "DeviceMesh":
        if self._mesh is None:
            self._mesh = ranks_mesh(device, **{DATA: -1, MODEL: self.ranks_per_batch})
        return self._mesh

    def _average(self, parameter: Tensor) -> None:
        """Average the gradient of one that is not spread over the samples, though it may be divided."""
        if not is_spread(parameter):
            super()._average(parameter)
        elif not (self._open and self.keeps_gradients):
            from stratrun.strategies.norms import settled

            data = self.mesh(parameter.device).get_group()
            dist.all_reduce(settled(parameter).div_(dist.get_world_size(data)), group=data)
