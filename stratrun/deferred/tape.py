"""What was done to tensors, kept so that any one of them can be made again, exactly as it was.

A `Cell` stands for the memory of a recorded tensor and its views. Each operation that writes to a cell
is an `Op`, which knows the ones that it builds on, and nothing of later ones: what no cell that is still
in use depends on is forgotten by itself.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from weakref import WeakValueDictionary
from zlib import crc32

import torch
from torch import Tensor

_numbers = count()
Memory = dict[int, torch.UntypedStorage]
"""Real memory, by the key of the cell that it is for."""


class Cell:
    """The memory behind recorded tensors.

    Attributes:
        last: The operation that wrote to it last.
        live: What it really holds, as long as that is kept.
        pinned: Whether others have got hold of the real memory, so that it is kept for good.
    """

    def __init__(self, device: torch.device) -> None:
        self.key: int = next(_numbers)
        self.device = device
        self.last: Op | None = None
        self.live: torch.UntypedStorage | None = None
        self.pinned = False
        _cells[self.key] = self


_cells: WeakValueDictionary[int, Cell] = WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Ref:
    """A view of the memory of a cell: where a tensor lies in it, and how to read it."""

    key: int
    device: torch.device
    nbytes: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    conj: bool
    neg: bool

    @classmethod
    def of(cls, tensor: Tensor, cell: Cell) -> "Ref":
        return cls(
            cell.key,
            cell.device,
            tensor.untyped_storage().nbytes(),
            tensor.dtype,
            tuple(tensor.size()),
            tuple(tensor.stride()),
            int(tensor.storage_offset()),
            tensor.is_conj(),
            tensor.is_neg(),
        )

    def on(self, storage: torch.UntypedStorage) -> Tensor:
        """This view of a piece of real memory."""
        if storage.nbytes() < self.nbytes:
            storage.resize_(self.nbytes)
        plain = torch.empty(0, dtype=self.dtype, device=storage.device)
        plain.set_(storage, self.offset, self.size, self.stride)
        return _flagged(plain, self.conj, self.neg)

    def covers_all(self) -> bool:
        """Whether every byte of the memory is one of this view's, and of one element only."""
        if self.nbytes != self.dtype.itemsize * torch.Size(self.size).numel():
            return False
        expected = 1
        for stride, size in sorted(zip(self.stride, self.size, strict=True)):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


def laid_out(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """The view of a piece of memory that `like` is of another."""
    plain = torch.empty(0, dtype=like.dtype, device=storage.device)
    plain.set_(storage, like.storage_offset(), like.size(), like.stride())
    return _flagged(plain, like.is_conj(), like.is_neg())


def _flagged(plain: Tensor, conj: bool, neg: bool) -> Tensor:
    if conj:
        plain = plain.conj()
    # Only torch itself makes such views, of imaginary parts; there is no public way to.
    return plain._neg_view() if neg else plain


@dataclass(frozen=True, slots=True)
class Noise:
    """Where a generator stood."""

    generator: torch.Generator
    state: Tensor

    @classmethod
    def of(cls, generator: torch.Generator) -> "Noise":
        return cls(generator, generator.get_state())


@dataclass(slots=True, eq=False)
class Op:
    """One operation, with all that it takes to do it again.

    Attributes:
        arguments: In place of recorded tensors there is a `Ref`, of real ones a `Constant`.
        noise: For one that draws random numbers, where the generator stood.
        needs: The operations that wrote what it reads.
        results: Views of new cells, by position among the tensors that it returns.
    """

    func: Callable[..., Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    noise: Noise | None
    needs: tuple["Op", ...]
    writes: frozenset[int]
    reads: frozenset[int]
    results: dict[int, Ref] = field(default_factory=dict)
    number: int = field(default_factory=lambda: next(_numbers))

    def touches(self) -> set[int]:
        return {*self.reads, *self.writes, *(ref.key for ref in self.results.values())}

    def run(self, memory: Memory) -> None:
        """Do it to the real memory of cells, which is made where it lacks."""

        def real(value: Any) -> Any:
            if isinstance(value, Constant):
                return copied(value.tensor) if value.written else value.tensor
            if not isinstance(value, Ref):
                return value
            if value.key not in memory:
                memory[value.key] = torch.UntypedStorage(value.nbytes, device=value.device)
            return value.on(memory[value.key])

        args, kwargs = mapped(real, self.arguments)
        if self.noise is None:
            returned = self.func(*args, **kwargs)
        else:
            before = self.noise.generator.get_state()
            self.noise.generator.set_state(self.noise.state)
            try:
                returned = self.func(*args, **kwargs)
            finally:
                self.noise.generator.set_state(before)
        outputs = list(tensors(returned))
        made: set[int] = set()
        for position, ref in self.results.items():
            if ref.key not in made:
                memory[ref.key] = _fitted(outputs[position], ref, memory)
            elif memory[ref.key] is not outputs[position].untyped_storage():
                ref.on(memory[ref.key]).copy_(outputs[position])
            made.add(ref.key)


@dataclass(slots=True, eq=False, weakref_slot=True)
class Constant:
    """A real tensor that an operation reads. It gets memory of its own before others write to its.

    Attributes:
        written: Whether the operation writes to it as well.
    """

    tensor: Tensor
    written: bool = False

    def separate(self) -> None:
        self.tensor = copied(self.tensor)


def copied(tensor: Tensor) -> Tensor:
    """The same view of a copy of the memory behind it."""
    if tensor.layout is not torch.strided:
        return tensor.clone()
    return laid_out(tensor.untyped_storage().clone(), tensor)


def _fitted(tensor: Tensor, ref: Ref, memory: Memory) -> torch.UntypedStorage:
    """Memory of its own with a tensor laid out as it was recorded."""
    storage = tensor.untyped_storage()
    shared = any(storage is other for other in memory.values())
    lies = (tuple(tensor.stride()), tensor.storage_offset()) == (ref.stride, ref.offset)
    if lies and not shared and storage.nbytes() >= ref.nbytes:
        return storage
    fresh = torch.UntypedStorage(ref.nbytes, device=storage.device)
    ref.on(fresh).copy_(tensor)
    return fresh


def value_of(cell: Cell) -> torch.UntypedStorage:
    """What a cell holds: as it is kept, or else made anew. Not to be written to if it is kept."""
    if cell.live is not None:
        return cell.live
    assert cell.last is not None
    ops, memory = _plan(cell.last)
    last_use = {key: number for number, op in enumerate(ops) for key in op.touches()}
    with torch.no_grad():
        for number, op in enumerate(ops):
            op.run(memory)
            for key in op.touches():
                if key != cell.key and last_use[key] == number:
                    memory.pop(key, None)
    return memory[cell.key]


def _plan(last: Op) -> tuple[list[Op], Memory]:
    """The operations that make what `last` wrote, in order, and the kept memory that they start from."""
    unusable: set[int] = set()
    while True:
        ops, kept = _ops_behind(last, unusable)
        # Kept memory is of now: it cannot serve where something of before is wanted too, nor be written to.
        conflict = kept.keys() & {key for op in ops for key in _written(op)}
        if not conflict:
            return ops, kept
        unusable |= conflict


def _ops_behind(last: Op, unusable: set[int]) -> tuple[list[Op], Memory]:
    found: dict[int, Op] = {}
    kept: Memory = {}
    waiting = [last]
    while waiting:
        op = waiting.pop()
        if op.number in found:
            continue
        found[op.number] = op
        for needed in op.needs:
            cells = [_cells.get(key) for key in op.reads & _written(needed)]
            live = {c.key: c.live for c in cells if c is not None and c.live is not None and c.last is needed}
            live = {key: storage for key, storage in live.items() if key not in unusable}
            kept.update(live)
            if len(live) < len(cells) or not cells:
                waiting.append(needed)
    return [found[number] for number in sorted(found)], kept


def digest(lasts: Iterable[Op]) -> int:
    """A number that differs, very likely, where the recorded operations would make other values."""
    found: dict[int, Op] = {}
    waiting = list(lasts)
    while waiting:
        op = waiting.pop()
        if op.number not in found:
            found[op.number] = op
            waiting.extend(op.needs)
    total = 0
    for number in sorted(found):
        op = found[number]
        total = crc32(str(op.func).encode(), total)
        for leaf in leaves(op.arguments):
            if isinstance(leaf, Constant):
                total = crc32_of(leaf.tensor, total)
            elif isinstance(leaf, bool | int | float | str | complex):
                total = crc32(repr(leaf).encode(), total)
        if op.noise is not None:
            total = crc32_of(op.noise.state, total)
    return total


def crc32_of(tensor: Tensor, start: int) -> int:
    """Of the bytes of a tensor, in order of its elements."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    found: Any = plain.reshape(-1).view(torch.uint8).numpy()
    return crc32(found, start)


def _written(op: Op) -> set[int]:
    return {*op.writes, *(ref.key for ref in op.results.values())}


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """A nest of lists, tuples and dicts with its leaves changed."""
    if type(value) in (list, tuple):
        return type(value)(mapped(change, one) for one in value)
    if type(value) is dict:
        return {name: mapped(change, one) for name, one in value.items()}
    return change(value)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from leaves(one)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
    else:
        yield value


def tensors(value: Any) -> Iterable[Tensor]:
    return (leaf for leaf in leaves(value) if isinstance(leaf, Tensor))
