"""The start and the end of a model's construction without memory."""

import gc
from collections.abc import Callable, Iterator
from types import CellType, FrameType
from typing import Any
from weakref import getweakrefcount

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from stratrun.deferred.handles import META, cell_of, hollow, is_plain
from stratrun.deferred.recorder import Recorder
from stratrun.deferred.tape import Cell, Ref, crc32_of, digest, value_of
from stratrun.deferred.view import View
from stratrun.errors import ModelError, nearest

SMALL = 1 << 16
"""Tensors of up to as many bytes are built as ever: they cost no memory to speak of."""


_LAZY = (UninitializedParameter, UninitializedBuffer)


class Initial:
    """The values that a plain build would have given each parameter and buffer.

    Each is made when it is asked for, with what it takes, and not kept. It is not to be written to.
    """

    def __init__(self, module: nn.Module) -> None:
        self._recorded: dict[str, tuple[Cell, Ref]] = {}
        self._real: dict[str, Tensor] = {}
        for name, tensor in _named(module):
            cell = cell_of(tensor)
            if cell is None:
                self._real[name] = tensor.detach()
            else:
                self._recorded[name] = cell, Ref.of(tensor, cell)

    def __call__(self, name: str) -> Tensor:
        """The whole value, in host memory.

        Args:
            name: As `named_parameters` and `named_buffers` have it, any of them for a tensor with several.
        """
        if name in self._real:
            return self._real[name].cpu()
        if name not in self._recorded:
            names = [*self._real, *self._recorded]
            raise KeyError(f"the model was built without a tensor {name!r}; {nearest(name, names)}")
        cell, ref = self._recorded[name]
        with torch.no_grad():
            return ref.on(value_of(cell)).cpu()

    def digest(self) -> int:
        """A number that differs, very likely, between processes of which the values differ."""
        cells = [cell for cell, _ in self._recorded.values()]
        total = digest(cell.last for cell in cells if cell.last is not None)
        known = [ref.on(cell.live) for cell, ref in self._recorded.values() if cell.live is not None]
        for tensor in [*known, *self._real.values()]:
            total = crc32_of(tensor, total)
        return total


def build(make: Callable[[], nn.Module], *, small: int = SMALL) -> tuple[nn.Module, Initial | None]:
    """What `make` returns, with its parameters and buffers on the meta device, and their values.

    `make` may do whatever a plain build may. Random generators are left as that leaves them. Other
    tensors that the model keeps are real afterwards, and so is all of a model that has no large tensor
    of its own making: there are no values beside it then.

    Args:
        small: Tensors of up to as many bytes are made at once.

    Raises:
        ModelError: it keeps a large tensor in a way that cannot be followed.
    """
    recorder = Recorder(small)
    since = Cell(META).key
    with recorder, View(recorder):
        module = make()
    if Cell(META).key == since + 1:
        return module, None  # nothing was recorded
    recorder.kept.forget()
    _fill_strays({id(tensor) for _, tensor in _named(module)}, since)
    if not any(cell_of(tensor) is not None for _, tensor in _named(module)):
        return module, None
    initial = Initial(module)
    _empty(module)
    return module, initial


def give_memory(module: nn.Module, device: torch.device) -> None:
    """Bring a module that was built without memory to a device; several names stay one tensor."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for part in module.modules():
        for own in _owned(part):
            for name, tensor in own.items():
                if tensor is not None:
                    places.setdefault(id(tensor), []).append((own, name))
    module.to_empty(device=device)
    for (own, name), *others in places.values():
        for other, alias in others:
            other[alias] = own[name]


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        if not isinstance(tensor, _LAZY):
            yield name, tensor


def _empty(module: nn.Module) -> None:
    """Put those tensors of a module that are real on the meta device too; several names stay one tensor."""
    twins: dict[int, Tensor] = {}
    for part in module.modules():
        for own in _owned(part):
            for name, tensor in own.items():
                if tensor is None or isinstance(tensor, _LAZY) or tensor.device == META:
                    continue
                if id(tensor) not in twins:
                    twins[id(tensor)] = _twin(tensor)
                own[name] = twins[id(tensor)]


def _owned(part: nn.Module) -> tuple[dict[str, Any], ...]:
    return part._parameters, part._buffers


def _twin(tensor: Tensor) -> Tensor:
    twin = tensor.detach().to(META) if not is_plain(tensor) else hollow(tensor)
    if isinstance(tensor, nn.Parameter):
        twin = nn.Parameter(twin, requires_grad=tensor.requires_grad)
    twin.__dict__.update(tensor.__dict__)  # what the user has set on it
    return twin


def _fill_strays(own: set[int], since: int) -> None:
    """Give memory to recorded tensors that are in use elsewhere than among parameters and buffers."""
    if not _strays(own, since):
        return
    gc.collect()  # most are part of what is waiting to be cleared away
    memory: dict[int, torch.UntypedStorage] = {}
    strays = _strays(own, since)
    for tensor in strays:
        holders = _holders(tensor, strays)
        cell = cell_of(tensor)
        if cell is None or not holders:
            continue  # torch alone has it: what a parameter was made as a view of
        if cell.key not in memory:
            found = value_of(cell)
            memory[cell.key] = found if cell.pinned else found.clone()
        real = Ref.of(tensor, cell).on(memory[cell.key]).requires_grad_(tensor.requires_grad)
        if isinstance(tensor, nn.Parameter):
            real = nn.Parameter(real, requires_grad=tensor.requires_grad)
        real.__dict__.update(tensor.__dict__)
        for holder in holders:
            _replace(holder, tensor, real)
        if getweakrefcount(tensor) or _holders(tensor, strays, holders):
            raise ModelError(
                f"the model keeps a tensor of shape {tuple(tensor.shape)} outside of its parameters and "
                "buffers, in a way in which it cannot be given its value any more; register it as a buffer, "
                "or give the model as an object"
            )


def _holders(tensor: Tensor, *known: Any) -> list[Any]:
    """What refers to a tensor, beside functions that run."""
    found = (one for one in gc.get_referrers(tensor) if not any(one is other for other in known))
    return [one for one in found if not isinstance(one, FrameType)]


def _replace(holder: Any, old: Tensor, new: Tensor) -> None:
    """Have what holds one tensor hold another, where it is known how."""
    if isinstance(holder, CellType):
        holder.cell_contents = new
        return
    items = holder if isinstance(holder, dict | list) else getattr(holder, "__dict__", {})
    places = list(items.items()) if isinstance(items, dict) else list(enumerate(items))
    for place, value in places:
        if value is old:
            items[place] = new


def _strays(own: set[int], since: int) -> list[Tensor]:
    """Recorded tensors with memory younger than the cell of that key, which are not the module's."""
    everything = (one for one in gc.get_objects() if issubclass(type(one), Tensor))
    others = (one for one in everything if id(one) not in own)
    return [one for one in others if (cell := cell_of(one)) is not None and cell.key > since]
