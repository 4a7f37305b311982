"""Operations on tensors, recorded instead of done: those that make or change a large one."""

from collections.abc import Iterable
from typing import Any
from weakref import ref as weak

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stratrun.deferred import schema
from stratrun.deferred.tape import (
    Cell,
    Constant,
    Memory,
    Noise,
    Op,
    Ref,
    laid_out,
    leaves,
    mapped,
    tensors,
    value_of,
)

META = torch.device("meta")
ROOM = 3
"""Values are kept while they are together no larger than the largest of them this many times."""


class Recorder(TorchDispatchMode):
    """Gives out tensors without memory for large ones, and keeps how they came about.

    Each operation that makes a large tensor of small ones, or of none, is done for real once: the
    generators move on as they always do, and its value is kept until others take its place. So is each
    whose tensors are all kept still. The rest is only noted, and done when somebody asks for a value.

    Args:
        small: Tensors of up to as many bytes stay real.
    """

    def __init__(self, small: int) -> None:
        super().__init__()
        self.small = small
        self.recorded = 0
        self.inside = False
        """Whether an operation is being handled: torch functions that are called meanwhile are ours."""
        self.wants_meta = False
        """Whether the operation under way was asked for on the meta device."""
        self._device = torch.device("cpu")
        self._kept: list[weak[Cell]] = []
        self._constants: list[weak[Constant]] = []
        self._adopted: list[tuple[torch.UntypedStorage, Tensor]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch would import its compiler, which takes seconds, to keep it from compiling this.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.inside:
            return func(*args, **(kwargs or {}))
        if any(_has_own_dispatch(one) for one in types):
            return NotImplemented  # of a class that makes several operations of it, which come here
        before, self.inside = self.inside, True
        try:
            return self._dispatch(func, args, kwargs or {})
        finally:
            self.inside = before

    def _dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cells = {cell.key: cell for t in tensors((args, kwargs)) if (cell := cell_of(t)) is not None}
        if cells:
            self._device = next(iter(cells.values())).device
            if self.wants_meta or torch.Tag.inplace_view in func.tags or func.is_view:
                return func(*args, **kwargs)
            if any(cell.pinned for cell in cells.values()):
                return self._with_pinned(func, args, kwargs)
        if not self.wants_meta and kwargs.get("device") == META:
            # What torch itself asks for: it goes by the device of a tensor that is recorded.
            kwargs = {**kwargs, "device": self._device}
        written = schema.written(func, args, kwargs)
        real_written = [t for t in written if cell_of(t) is None]
        self._separate_constants(real_written)
        if (
            not cells
            or real_written
            or schema.is_random(func)
            or schema.returns_values(func)
            or all(cell.live is not None for cell in cells.values())
        ):
            return self._done(func, args, kwargs, cells)
        return self._noted(func, args, kwargs, cells)

    # -- three ways to go about an operation

    def _with_pinned(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Do it to the real memory that others hold too."""
        given: dict[int, tuple[Tensor, Tensor]] = {}

        def real(value: Any) -> Any:
            cell = cell_of(value)
            if cell is None or not cell.pinned:
                return value
            tensor = self.real(value)
            given[id(tensor)] = tensor, value
            return tensor

        returned = self._dispatch(func, mapped(real, args), mapped(real, kwargs))
        return mapped(lambda value: given[id(value)][1] if id(value) in given else value, returned)

    def _done(self, func: Any, args: Any, kwargs: Any, cells: dict[int, Cell]) -> Any:
        """Do it for real, and keep the values as long as there is room."""
        noise = self._noise(args, kwargs) if schema.is_random(func) else None
        # Before it is run, as it may change what it is given.
        early = bool(cells) or func._schema.is_mutable
        op = self._op(func, args, kwargs, cells, noise) if early else None
        memory, scratch = self._memory(func, args, kwargs, cells)
        given: dict[int, tuple[Tensor, Tensor]] = {}

        def real(value: Any) -> Any:
            cell = cell_of(value)
            if cell is None:
                return value
            tensor = Ref.of(value, cell).on(memory[cell.key])
            given[id(tensor)] = tensor, value
            return tensor

        real_args, real_kwargs = mapped(real, args), mapped(real, kwargs)
        returned = func(*real_args, **real_kwargs)
        sources = [t.untyped_storage() for t in tensors((real_args, real_kwargs)) if is_plain(t)]
        outputs: dict[int, Tensor] = {}
        stand_ins: list[tuple[torch.UntypedStorage, Tensor]] = []
        for position, tensor in enumerate(tensors(returned)):
            if id(tensor) in given or not self._is_large(tensor, sources):
                continue
            op = op or self._op(func, args, kwargs, cells, noise)
            outputs[id(tensor)] = self._without_memory(tensor, position, op, stand_ins)
        if op is not None and (outputs or op.writes):
            self._commit(op, cells)
            for key in op.writes - scratch:
                self.keep(cells[key], memory[key])
        return mapped(
            lambda value: outputs.get(id(value), given[id(value)][1] if id(value) in given else value),
            returned,
        )

    def _noted(self, func: Any, args: Any, kwargs: Any, cells: dict[int, Cell]) -> Any:
        """Find out only what the results look like."""
        op = self._op(func, args, kwargs, cells, None)
        shapes = {name: META if name == "device" and one else one for name, one in kwargs.items()}
        try:
            returned = func(*mapped(_shape, args), **mapped(_shape, shapes))
        except Exception:
            # Shapes alone do not tell, or there is a mistake in it, which the values show as well.
            return self._done(func, args, kwargs, cells)
        device = torch.device(kwargs.get("device") or self._device)
        for position, tensor in enumerate(tensors(returned)):
            cell = cell_of(tensor) or set_cell(tensor, Cell(device))
            if cell.key not in cells:
                op.results[position] = Ref.of(tensor, cell)
                cell.last = op
        if op.results or op.writes:
            self._commit(op, cells)
        return returned

    # -- pieces of them

    def _op(self, func: Any, args: Any, kwargs: Any, cells: dict[int, Cell], noise: Noise | None) -> Op:
        whole = _overwritten_whole(func, args)
        written = schema.written(func, args, kwargs)
        read = [] if schema.reads_shapes(func) else [t for t in tensors((args, kwargs)) if t is not whole]
        reads = {cell.key for t in read if (cell := cell_of(t)) is not None}
        needs = {op.number: op for key in reads if (op := cells[key].last) is not None}

        def packed(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            cell = cell_of(value)
            return self._constant(value, written) if cell is None else Ref.of(value, cell)

        return Op(
            func,
            mapped(packed, (args, kwargs)),
            noise,
            tuple(needs.values()),
            frozenset(cell.key for t in written if (cell := cell_of(t)) is not None),
            frozenset(reads),
        )

    def _commit(self, op: Op, cells: dict[int, Cell]) -> None:
        self.recorded += 1
        for key in op.writes:
            cells[key].last = op
            cells[key].live = None

    def _memory(self, func: Any, args: Any, kwargs: Any, cells: dict[int, Cell]) -> tuple[Memory, set[int]]:
        """What the cells hold, and those of which it is for this operation alone, which reads none of it."""
        memory: Memory = {}
        scratch: set[int] = set()
        first = args[0] if schema.overwrites(func) and args else None
        for key, cell in cells.items():
            views = [t for t in tensors((args, kwargs)) if cell_of(t) is cell]
            unread = schema.reads_shapes(func) or (len(views) == 1 and views[0] is first)
            if cell.live is None and unread:
                memory[key] = torch.UntypedStorage(views[0].untyped_storage().nbytes(), device=cell.device)
                if _overwritten_whole(func, args) is None:
                    scratch.add(key)
            else:
                memory[key] = value_of(cell)
                self.keep(cell, memory[key])
        return memory, scratch

    def _constant(self, value: Tensor, written: Iterable[Tensor]) -> Constant:
        constant = Constant(value.detach(), written=any(value is one for one in written))
        if not is_plain(value) or constant.written or _is_small_or_shared(value, self.small):
            constant.separate()
        else:
            self._constants = [one for one in self._constants if one() is not None]
            self._constants.append(weak(constant))
        return constant

    def _separate_constants(self, written: Iterable[Tensor]) -> None:
        """Let recorded operations keep what is about to be written over."""
        for tensor in written:
            for one in self._constants:
                constant = one()
                if constant is None or not is_plain(tensor):
                    continue
                if constant.tensor.untyped_storage() is tensor.untyped_storage():
                    constant.separate()

    def _without_memory(
        self, real: Tensor, position: int, op: Op, stand_ins: list[tuple[torch.UntypedStorage, Tensor]]
    ) -> Tensor:
        """A tensor like a real one, which it stands for from now on."""
        storage = real.untyped_storage()
        known = next((tensor for one, tensor in stand_ins if one is storage), None)
        empty = torch.UntypedStorage(storage.nbytes(), device="meta") if known is None else None
        tensor = laid_out(empty if known is None else known.untyped_storage(), real)  # type: ignore[arg-type]
        stand_ins.append((storage, tensor))
        cell = cell_of(tensor) or set_cell(tensor, Cell(real.device))
        op.results[position] = Ref.of(tensor, cell)
        cell.last = op
        self.keep(cell, storage)
        return tensor

    def _is_large(self, tensor: Tensor, sources: list[torch.UntypedStorage]) -> bool:
        if not is_plain(tensor) or tensor.device == META:
            return False
        storage = tensor.untyped_storage()
        return storage.nbytes() > self.small and not any(storage is source for source in sources)

    def _noise(self, args: Any, kwargs: Any) -> Noise | None:
        """Where the generator stands that an operation is about to draw from."""
        given = next((one for one in leaves((args, kwargs)) if isinstance(one, torch.Generator)), None)
        if given is not None:
            return Noise.of(given)
        device = kwargs.get("device")
        if device is None:
            first = next(iter(tensors((args, kwargs))), None)
            cell = cell_of(first)
            device = cell.device if cell is not None else (first.device if first is not None else "cpu")
        device = torch.device(device)
        if device == META:
            return None  # where the user builds on it, nothing is drawn
        if device.type == "cpu":
            return Noise.of(torch.default_generator)
        module: Any = torch.get_device_module(device)
        index = module.current_device() if device.index is None else device.index
        return Noise.of(module.default_generators[index])

    def real(self, value: Tensor) -> Tensor:
        """The value of a recorded tensor, in memory that is not to be written to."""
        cell = cell_of(value)
        assert cell is not None
        storage = value_of(cell)
        self.keep(cell, storage)
        return Ref.of(value, cell).on(storage)

    def pin(self, value: Tensor) -> Tensor:
        """The value of a recorded tensor, to be written to: what is recorded is that memory from now on."""
        tensor, cell = self.real(value), cell_of(value)
        assert cell is not None and cell.live is not None
        self._pin(cell)
        return tensor

    def adopt(self, real: Tensor) -> Tensor:
        """A recorded tensor that is the memory of a real one."""
        storage = real.untyped_storage()
        known = next((tensor for one, tensor in self._adopted if one is storage), None)
        if known is not None:
            return laid_out(known.untyped_storage(), real)
        tensor = laid_out(torch.UntypedStorage(storage.nbytes(), device="meta"), real)
        cell = set_cell(tensor, Cell(real.device))
        cell.live = storage
        self._pin(cell)
        self._adopted.append((storage, tensor))
        return tensor

    def forget(self) -> None:
        """Drop the values that are kept."""
        for one in self._kept:
            cell = one()
            if cell is not None and not cell.pinned:
                cell.live = None

    def _pin(self, cell: Cell) -> None:
        assert cell.live is not None
        cell.pinned, cell.last = True, None
        cell.live._written_unseen = True  # type: ignore[attr-defined]
        self.recorded += 1

    def keep(self, cell: Cell, storage: torch.UntypedStorage) -> None:
        """Keep a value, and drop those that were used longest ago where it gets too much."""
        cell.live = storage
        held = [one for ref in self._kept if (one := ref()) is not None and one.live is not None]
        held = [one for one in held if one is not cell and not one.pinned] + [cell]
        sizes = [one.live.nbytes() for one in held if one.live is not None]
        while sum(sizes) > ROOM * max(sizes):
            held.pop(0).live = None
            sizes.pop(0)
        self._kept = [weak(one) for one in held]


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
    if _has_own_dispatch(type(tensor)) or tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.layout is torch.strided


def _has_own_dispatch(kind: type) -> bool:
    return kind.__torch_dispatch__ is not Tensor.__torch_dispatch__  # type: ignore[attr-defined]


def _is_small_or_shared(tensor: Tensor, small: int) -> bool:
    """Whether others may write to its memory unseen, or it is too small to matter."""
    storage = tensor.untyped_storage()
    return storage.nbytes() <= small or not storage.resizable() or hasattr(storage, "_written_unseen")


def _overwritten_whole(func: Any, args: Any) -> Tensor | None:
    """The recorded tensor that an operation makes anew, with all of its memory, whatever it held."""
    first: Any = args[0] if args and schema.overwrites(func) else None
    cell = cell_of(first)
    return first if cell is not None and Ref.of(first, cell).covers_all() else None


def _shape(value: Any) -> Any:
    """A tensor without memory, as another; one that has none itself, and anything else, as it is."""
    if not isinstance(value, Tensor) or cell_of(value) is not None:
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=META)
