"""Tensors of which each rank holds a part: made of whole ones, and room for stored ones.

What they are is asked of themselves, as importing their class takes a run without any half a second.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


def is_spread(value: Any) -> TypeGuard[Any]:
    """Whether each rank holds a part of it only, or a copy that is known to be one."""
    return isinstance(value, Tensor) and hasattr(value, "placements")


class Divided(dict[str, Any]):
    """Part of a state that is the same on all ranks otherwise: of its entries each rank has some.

    A checkpoint has them all, each from the rank that had it.
    """


def local_part(tensor: Tensor) -> Tensor:
    """The part that this rank holds, without its history: enough to take each element by itself."""
    local = getattr(tensor, "_local_tensor", tensor)  # to_local() would wait and be recorded
    part: Tensor = local.detach()
    return part


def spread_as(value: Any, like: Any) -> Any:
    """A tensor spread over the ranks as `like` is, which has its shape; for others the value itself.

    Of a whole one each rank takes its part: nothing is exchanged.
    """
    if not is_spread(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    if is_spread(value):
        same = value.placements == like.placements and value.device_mesh == like.device_mesh
        return value if same else value.redistribute(like.device_mesh, like.placements)
    made = _empty_like(like, value.dtype)
    fill(made, value)
    return made


def is_unsettled(value: Any) -> bool:
    """Whether the ranks hold terms of it that are still to be brought together."""
    return is_spread(value) and any(placement.is_partial() for placement in value.placements)


@torch.no_grad()
def fill(spread: Tensor, whole: Tensor) -> None:
    """Copy from a whole tensor what this rank holds of one that is spread over ranks, or not."""
    if not is_spread(spread):
        spread.copy_(whole)
        return
    for offsets, sizes in held_boxes(spread):
        part = whole
        for axis, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
            part = part.narrow(axis, offset, size)
        local_part(spread).copy_(part)


def held_boxes(spread: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Where the parts that this rank holds begin in the whole, and how large they are."""
    # What torch's own checkpoints ask a tensor; its parts are one box at most.
    chunks = spread.__create_chunk_list__()
    return [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in chunks]


class Rooms:
    """Where stored tensors are read to, so that each rank reads only what it is to hold.

    What is stored under the name of a weight, and of its shape, is spread as that is: the weight itself, what
    an optimizer has for it, its average, its gradient. For all else there is none. What hooks had saved whole
    is not asked for here.
    """

    def __init__(self, *modules: nn.Module) -> None:
        state = [item for module in modules for item in module.state_dict().items()]
        self._spread = {name: tensor for name, tensor in state if is_spread(tensor)}
        self._with_slash = [name for name in self._spread if "/" in name]

    def room(
        self,
        name: str,
        shape: torch.Size,
        dtype: torch.dtype,
        renamed: Mapping[str, str | None] | None = None,
    ) -> Tensor | None:
        """Room for a stored tensor, by the path that it is stored under; None if it is to be read whole.

        Args:
            renamed: What names of stored weights are here.
        """
        for part in self._parts(name):
            part = part if renamed is None else renamed.get(part) or part
            like = self._spread.get(part)
            if like is not None and like.shape == shape:
                return _empty_like(like, dtype)
        return None

    def _parts(self, name: str) -> list[str]:
        held = [one for one in self._with_slash if f"/{one}/" in f"/{name}/"]
        return [*held, *name.split("/")]


def _empty_like(like: Any, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(like, dtype=dtype, requires_grad=False)
