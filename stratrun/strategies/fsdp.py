from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from stratrun.registry import STRATEGIES
from stratrun.strategies.mesh import SHARD, ranks_mesh
from stratrun.strategies.shard_options import ShardOptions
from stratrun.strategies.sharded import ShardedStrategy

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@STRATEGIES.register_module("fsdp")
class FSDPStrategy(ShardedStrategy):
    """Parameters, gradients and optimizer state are spread over all ranks.

    With B blocks a forward and backward pass gathers 2 B + 1 times: each block for each of them, and all that
    is in no block (the root) once. Gradients are averaged B + 1 times. Parts without parameters take none.

    Args:
        blocks: What is gathered together: ``"auto"``, the blocks that repeat; a class or its name; a name
            such as ``"layers.*"``; a list of them; ``dict(min_params=N)``; ``False`` for all at once.
        reshard_after_forward: Whether a block goes back to its parts between its forward and its backward
            pass; without it B + 1 gatherings do, for the memory of the whole model. A number: spread it over
            so many neighbouring ranks only, as within one machine.
        accumulate: Within an accumulation window ``"sharded"`` averages the gradients of each batch, and
            keeps of them but this rank's part. ``"unsharded"`` averages once a window, for the memory of
            whole gradients.
        offload: Keep parts, their gradients and so the optimizer's state in host memory.
        ignore: Names of parameters or modules to leave whole on every rank, with gradients that are averaged
            one by one; so is, unasked, what is a single number, and what blocks share with one another.
        reduce_dtype: What gradients are averaged in. That of double precision stays what it is.
        broadcast_buffers: As in `DDPStrategy`.
    """

    name = "fsdp"

    def __init__(
        self,
        *,
        blocks: Any = None,
        reshard_after_forward: bool | int = True,
        accumulate: Literal["sharded", "unsharded"] = "sharded",
        offload: bool = False,
        ignore: Sequence[str] = (),
        reduce_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        broadcast_buffers: bool = True,
    ) -> None:
        super().__init__(
            ShardOptions(
                blocks=blocks,
                reshard_after_forward=reshard_after_forward,
                accumulate=accumulate,
                offload=offload,
                ignore=ignore,
                reduce_dtype=reduce_dtype,
                broadcast_buffers=broadcast_buffers,
            )
        )

    def mesh(self, device: torch.device) -> "DeviceMesh":
        return ranks_mesh(device, **{SHARD: -1})
