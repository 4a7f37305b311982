"""How a tensor without memory is known to stand for one that is recorded."""

from typing import Any

import torch
from torch import Tensor

from stratrun.deferred.tape import Cell, laid_out

META = torch.device("meta")


def cell_of(value: Any) -> Cell | None:
    """The cell of a recorded tensor; None for all else."""
    if not isinstance(value, Tensor) or not is_plain(value):
        return None
    # Storages keep what is set on them for as long as any tensor uses them.
    cell: Cell | None = getattr(value.untyped_storage(), "_recorded_cell", None)
    return cell


def set_cell(tensor: Tensor, cell: Cell) -> Cell:
    tensor.untyped_storage()._recorded_cell = cell  # type: ignore[attr-defined]
    return cell


def is_plain(tensor: Tensor) -> bool:
    """Whether it is a view of one piece of memory."""
    if has_own_dispatch(type(tensor)) or tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.layout is torch.strided


def has_own_dispatch(kind: type) -> bool:
    return kind.__torch_dispatch__ is not Tensor.__torch_dispatch__  # type: ignore[attr-defined]


def hollow(tensor: Tensor) -> Tensor:
    """A tensor that lies as another does, in as much memory, of which there is none."""
    return laid_out(torch.UntypedStorage(tensor.untyped_storage().nbytes(), device="meta"), tensor)


def shape_of(value: Any) -> Any:
    """A real tensor without its memory; anything else, recorded tensors too, as it is."""
    if not isinstance(value, Tensor) or cell_of(value) is not None:
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=META)
