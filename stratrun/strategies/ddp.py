import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stratrun.registry import STRATEGIES
from stratrun.strategies.base import Strategy

# torch 2.13 gave the option another name, and warns of the old one.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


@STRATEGIES.register_module("ddp")
class DDPStrategy(Strategy):
    """A full replica on every rank; gradients are averaged while the backward pass runs.

    Args:
        find_unused_parameters: Look for parameters that a backward pass did not reach, at the
            cost of one walk over the graph. By default only where the run has several optimizers,
            each for its part of the model.
        broadcast_buffers: Give all ranks the buffers of the main one before each forward pass. Without
            it ranks keep their own, and a checkpoint holds those of the main one alone.
        static_graph, gradient_as_bucket_view, bucket_cap_mb: As in
            `torch.nn.parallel.DistributedDataParallel`.
    """

    name = "ddp"
    accelerators = frozenset({"cpu", "cuda"})
    auto_for = "several processes"

    def __init__(
        self,
        *,
        find_unused_parameters: bool | None = None,
        broadcast_buffers: bool = True,
        static_graph: bool = False,
        gradient_as_bucket_view: bool = True,
        bucket_cap_mb: float | None = None,
    ) -> None:
        self._find_unused = find_unused_parameters
        self._broadcast_buffers = broadcast_buffers
        self._static_graph = static_graph
        self._bucket_view = gradient_as_bucket_view
        self._bucket_cap_mb = bucket_cap_mb

    def wrap(self, module: nn.Module, device: torch.device, *, partial_backward: bool) -> nn.Module:
        find_unused = partial_backward if self._find_unused is None else self._find_unused
        buffers: dict[str, Any] = {} if self._broadcast_buffers else {_SYNC_BUFFERS: False}
        return DistributedDataParallel(
            module,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=find_unused,
            **buffers,
            static_graph=self._static_graph,
            gradient_as_bucket_view=self._bucket_view,
            bucket_cap_mb=self._bucket_cap_mb,
        )

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        return cast(DistributedDataParallel, wrapped).no_sync()

    def reduce_gradients(self, parameters: Sequence[Tensor]) -> None:
        # What no rank's backward pass reached must stay without a gradient, or the optimizer
        # would decay it; a rank cannot know that of the others.
        reached = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device)
        reached = reached.to(torch.int32)
        dist.all_reduce(reached, dist.ReduceOp.MAX)
        for parameter, some in zip(parameters, reached.tolist(), strict=True):
            if some:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(parameter.grad.div_(dist.get_world_size()))

    def mean(self, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    def sync_buffers(self, module: nn.Module) -> None:
        if self._broadcast_buffers:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)
