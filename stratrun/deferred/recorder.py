"""Operations on tensors, recorded instead of done: those that make or change a large one."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stratrun.deferred import schema
from stratrun.deferred.handles import META, cell_of, has_own_dispatch, hollow, is_plain, set_cell, shape_of
from stratrun.deferred.kept import Constants, Kept
from stratrun.deferred.tape import Cell, Memory, Noise, Op, Ref, laid_out, leaves, mapped, tensors, value_of


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
        self.kept: Kept = Kept()
        self.inside: bool = False
        """Whether an operation is being handled: torch functions that are called meanwhile are ours."""
        self.wants_meta = False
        """Whether the operation under way was asked for on the meta device."""
        self._device = torch.device("cpu")
        self._constants = Constants(small)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch would import its compiler, which takes seconds, to keep it from compiling this.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.inside:
            return func(*args, **(kwargs or {}))
        if any(has_own_dispatch(one) for one in types):
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
        self._constants.separate(real_written)
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
            tensor = self.kept.real(value)
            given[id(tensor)] = tensor, value
            return tensor

        returned = self._dispatch(func, mapped(real, args), mapped(real, kwargs))
        return mapped(lambda value: given[id(value)][1] if id(value) in given else value, returned)

    def _done(self, func: Any, args: Any, kwargs: Any, cells: dict[int, Cell]) -> Any:
        """Do it for real, and keep the values as long as there is room."""
        noise = _noise(args, kwargs) if schema.is_random(func) else None
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
                self.kept.keep(cells[key], memory[key])
        known = {**outputs, **{key: recorded for key, (_, recorded) in given.items()}}
        return mapped(lambda value: known.get(id(value), value), returned)

    def _noted(self, func: Any, args: Any, kwargs: Any, cells: dict[int, Cell]) -> Any:
        """Find out only what the results look like."""
        op = self._op(func, args, kwargs, cells, None)
        shapes = {name: META if name == "device" and one else one for name, one in kwargs.items()}
        try:
            returned = func(*mapped(shape_of, args), **mapped(shape_of, shapes))
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
            return self._constants.take(value, written) if cell is None else Ref.of(value, cell)

        return Op(
            func,
            mapped(packed, (args, kwargs)),
            noise,
            tuple(needs.values()),
            frozenset(cell.key for t in written if (cell := cell_of(t)) is not None),
            frozenset(reads),
        )

    def _commit(self, op: Op, cells: dict[int, Cell]) -> None:
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
                self.kept.keep(cell, memory[key])
        return memory, scratch

    def _without_memory(
        self, real: Tensor, position: int, op: Op, stand_ins: list[tuple[torch.UntypedStorage, Tensor]]
    ) -> Tensor:
        """A tensor like a real one, which it stands for from now on."""
        storage = real.untyped_storage()
        known = next((tensor for one, tensor in stand_ins if one is storage), None)
        tensor = hollow(real) if known is None else laid_out(known.untyped_storage(), real)
        stand_ins.append((storage, tensor))
        cell = cell_of(tensor) or set_cell(tensor, Cell(real.device))
        op.results[position] = Ref.of(tensor, cell)
        cell.last = op
        self.kept.keep(cell, storage)
        return tensor

    def _is_large(self, tensor: Tensor, sources: list[torch.UntypedStorage]) -> bool:
        if not is_plain(tensor) or tensor.device == META:
            return False
        storage = tensor.untyped_storage()
        return storage.nbytes() > self.small and not any(storage is source for source in sources)


def _noise(args: Any, kwargs: Any) -> Noise | None:
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


def _overwritten_whole(func: Any, args: Any) -> Tensor | None:
    """The recorded tensor that an operation makes anew, with all of its memory, whatever it held."""
    first: Any = args[0] if args and schema.overwrites(func) else None
    cell = cell_of(first)
    return first if cell is not None and Ref.of(first, cell).covers_all() else None
