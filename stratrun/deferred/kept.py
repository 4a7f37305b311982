"""Values of recorded tensors that are kept, and real tensors that recorded operations read."""

from collections.abc import Iterable
from weakref import ref as weak

import torch
from torch import Tensor

from stratrun.deferred.handles import cell_of, hollow, is_plain, set_cell
from stratrun.deferred.tape import Cell, Constant, Ref, laid_out, value_of

ROOM = 3
"""Values are kept while they are together no larger than the largest of them this many times."""


class Kept:
    """The values of recorded tensors that were used last, and of those that others have got hold of."""

    def __init__(self) -> None:
        self._used: list[weak[Cell]] = []
        self._adopted: list[tuple[torch.UntypedStorage, Tensor]] = []

    def keep(self, cell: Cell, storage: torch.UntypedStorage) -> None:
        """Keep a value, and drop those that were used longest ago where it gets too much."""
        cell.live = storage
        held = [one for ref in self._used if (one := ref()) is not None and one.live is not None]
        held = [one for one in held if one is not cell and not one.pinned] + [cell]
        sizes = [one.live.nbytes() for one in held if one.live is not None]
        while sum(sizes) > ROOM * max(sizes):
            held.pop(0).live = None
            sizes.pop(0)
        self._used = [weak(one) for one in held]

    def forget(self) -> None:
        """Drop what nobody else has. Nothing is recorded after this."""
        self._adopted.clear()
        for one in self._used:
            cell = one()
            if cell is not None and not cell.pinned:
                cell.live = None

    def real(self, recorded: Tensor) -> Tensor:
        """The value of a recorded tensor, in memory that is not to be written to."""
        cell = cell_of(recorded)
        assert cell is not None
        storage = value_of(cell)
        self.keep(cell, storage)
        return Ref.of(recorded, cell).on(storage)

    def pin(self, recorded: Tensor) -> Tensor:
        """The value of a recorded tensor, to be written to: what is recorded is that memory from now on."""
        tensor, cell = self.real(recorded), cell_of(recorded)
        assert cell is not None
        _pin(cell)
        return tensor

    def adopt(self, real: Tensor) -> Tensor:
        """A recorded tensor that is the memory of a real one."""
        storage = real.untyped_storage()
        known = next((tensor for one, tensor in self._adopted if one is storage), None)
        if known is not None:
            return laid_out(known.untyped_storage(), real)
        tensor = hollow(real)
        cell = set_cell(tensor, Cell(real.device))
        cell.live = storage
        _pin(cell)
        self._adopted.append((storage, tensor))
        return tensor


def _pin(cell: Cell) -> None:
    assert cell.live is not None
    cell.pinned, cell.last = True, None
    cell.live._written_unseen = True  # type: ignore[attr-defined]


class Constants:
    """Real tensors as recorded operations found them.

    Args:
        small: Those of up to as many bytes are copied at once.
    """

    def __init__(self, small: int) -> None:
        self._small = small
        self._shared: list[weak[Constant]] = []

    def take(self, tensor: Tensor, written: Iterable[Tensor]) -> Constant:
        """What an operation is to read in the place of a tensor; `written`: what it writes to."""
        constant = Constant(tensor.detach(), written=any(tensor is one for one in written))
        if not is_plain(tensor) or constant.written or self._is_small_or_shared(tensor):
            constant.separate()
        else:
            self._shared = [one for one in self._shared if one() is not None]
            self._shared.append(weak(constant))
        return constant

    def separate(self, written: Iterable[Tensor]) -> None:
        """Keep what is about to be written over."""
        for tensor in written:
            for one in self._shared:
                constant = one()
                if constant is None or not is_plain(tensor):
                    continue
                if constant.tensor.untyped_storage() is tensor.untyped_storage():
                    constant.separate()

    def _is_small_or_shared(self, tensor: Tensor) -> bool:
        """Whether others may write to its memory unseen, or it is too small to matter."""
        storage = tensor.untyped_storage()
        unseen = not storage.resizable() or hasattr(storage, "_written_unseen")
        return unseen or storage.nbytes() <= self._small
