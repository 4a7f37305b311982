import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stratrun.registry import STRATEGIES
from stratrun.strategies import averaging
from stratrun.strategies.base import Strategy
from stratrun.strategies.buffers import saved_buffers
from stratrun.strategies.optimizer_shards import OptimizerShards

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
            each for its part of the model, and in deterministic mode, where it keeps gradients in
            the order that they are first exchanged in: otherwise torch sorts them anew after the
            first step of a run, and of a resumed run, which then differs in the last digits
            on more than two ranks. Without it a training step that leaves a parameter out is an error.
        broadcast_buffers: Give all ranks the buffers of the main one before each forward pass. Without
            it ranks keep their own, which are saved for each, and those of the main one go to
            all where another number of ranks goes on.
        shard_optimizer: Have each rank update a part of the parameters, and keep the optimizer's state for
            that part alone (ZeRO, stage 1). Weights come to the same, bit by bit.
        static_graph, gradient_as_bucket_view, bucket_cap_mb: As in
            `torch.nn.parallel.DistributedDataParallel`.
    """

    name = "ddp"
    accelerators: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})
    auto_for: ClassVar[Literal["one process", "several processes"] | None] = "several processes"

    def __init__(
        self,
        *,
        find_unused_parameters: bool | None = None,
        broadcast_buffers: bool = True,
        static_graph: bool = False,
        gradient_as_bucket_view: bool = True,
        bucket_cap_mb: float | None = None,
        shard_optimizer: bool = False,
    ) -> None:
        self._find_unused = find_unused_parameters
        self.expects_unused: bool = find_unused_parameters is True
        self._broadcast_buffers = broadcast_buffers
        self._static_graph = static_graph
        self._bucket_view = gradient_as_bucket_view
        self._bucket_cap_mb = bucket_cap_mb
        self._wrapped_before = False
        self.optimizer_shards: OptimizerShards | None = OptimizerShards() if shard_optimizer else None

    def wrap(self, module: nn.Module, device: torch.device, *, partial_backward: bool) -> nn.Module:
        find_unused = self._find_unused
        if find_unused is None:
            fixed_order = torch.are_deterministic_algorithms_enabled() and not self._static_graph
            find_unused = partial_backward or fixed_order
        buffers: dict[str, Any] = {} if self._broadcast_buffers else {_SYNC_BUFFERS: False}
        # Later versions of torch take those of the main rank at the start, whatever follows.
        kept = [b.clone() for b in module.buffers()] if self._wrapped_before and buffers else []
        wrapped = DistributedDataParallel(
            module,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=find_unused,
            **buffers,
            static_graph=self._static_graph,
            gradient_as_bucket_view=self._bucket_view,
            bucket_cap_mb=self._bucket_cap_mb,
        )
        self._wrapped_before = True
        # With a static graph it is the first step that says which are waited for.
        if not self._static_graph and (self.expects_unused or not find_unused):
            from stratrun.strategies import unused  # only now, as few runs have ranks

            unused.watch(wrapped, searches=find_unused)
        for buffer, value in zip(module.buffers(), kept, strict=False):
            buffer.copy_(value)
        return wrapped

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        return cast(DistributedDataParallel, wrapped).no_sync()

    def reduce_gradients(self, parameters: Sequence[Tensor]) -> None:
        for parameter in averaging.reached(parameters):
            gradient = cast(Tensor, parameter.grad)
            dist.all_reduce(gradient.div_(dist.get_world_size()))

    def mean(self, value: Tensor) -> Tensor:
        return averaging.mean(value)

    def sync_buffers(self, module: nn.Module) -> None:
        if self._broadcast_buffers:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def own_state(self, wrapped: nn.Module) -> dict[str, Any]:
        # Buffers that the next forward pass takes from the main rank need not be kept, nor those of
        # the main rank itself, which are part of the logical state. Within an accumulation window
        # none are exchanged, whatever was asked for.
        if not isinstance(wrapped, DistributedDataParallel):
            return {}
        exchanged = wrapped.require_forward_param_sync
        if exchanged and self._broadcast_buffers:
            return {}
        buffers = {} if dist.get_rank() == 0 else saved_buffers(wrapped.module)
        return {"exchanged": exchanged, "buffers": buffers}

    def load_own_state(self, wrapped: nn.Module, state: Mapping[str, Any]) -> None:
        if not state or not isinstance(wrapped, DistributedDataParallel):
            return
        wrapped.require_forward_param_sync = state["exchanged"]
        own = saved_buffers(wrapped.module)
        for name, value in state["buffers"].items():
            if name in own:
                own[name].copy_(value)
