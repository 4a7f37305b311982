"""Counts memory and exchanges while a program runs, with tensors that are real or that stand in for such."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple, Self
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed import distributed_c10d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from stratrun.cli.plan.ledger import Ledger

_NAMESPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor")
# What carries nothing.
_EMPTY = ("wait", "wrap", "barrier", "monitored_barrier")


class Exchange(NamedTuple):
    """A kind of exchange between ranks."""

    name: str
    ranks: int
    """How many take part."""

    def sent(self, size: int) -> int:
        """What each of them sends, if they stand in a ring, for a tensor of that size."""
        if self.name in ("all_gather", "reduce_scatter", "all_to_all"):
            return size * (self.ranks - 1) // self.ranks
        return 2 * size * (self.ranks - 1) // self.ranks if self.name == "all_reduce" else size


class Traffic:
    """How many exchanges of each kind there were, and how large the whole tensors were together.

    Whole: what an all-gather gives, what a reduce-scatter takes, what an all-reduce gives and takes.
    """

    def __init__(self) -> None:
        self.counts: Counter[Exchange] = Counter()
        self.sizes: Counter[Exchange] = Counter()

    def add(self, kind: Exchange, size: int, times: int = 1) -> None:
        self.counts[kind] += times
        self.sizes[kind] += size

    def since(self, before: Traffic, times: int = 1) -> Traffic:
        """What came on top of an earlier copy, `times` over."""
        found = Traffic()
        for kind in self.counts:
            count = self.counts[kind] - before.counts[kind]
            if count:
                found.add(kind, (self.sizes[kind] - before.sizes[kind]) * times, count * times)
        return found

    def __add__(self, other: Traffic) -> Traffic:
        found = Traffic()
        found.counts, found.sizes = self.counts + other.counts, self.sizes + other.sizes
        return found

    def copy(self) -> Traffic:
        return self + Traffic()

    @property
    def sent(self) -> int:
        """Bytes that each rank sends, if the ranks of an exchange stand in a ring."""
        return sum(kind.sent(size) for kind, size in self.sizes.items())


class Meter(TorchDispatchMode):
    """Within the block, counts what operations allocate and what ranks exchange.

    Memory is that of tensors: neither what kernels need for themselves, nor what an allocator keeps free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger: Ledger = Ledger()
        self.traffic: Traffic = Traffic()

    def __enter__(self) -> Self:
        # FSDP gives memory back by resizing, which is no operation.
        plain_resize, ledger = torch.UntypedStorage.resize_, self.ledger

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = plain_resize(storage, size)
            ledger.resized(storage)
            return result

        self._patches = ExitStack()
        self._patches.enter_context(patch.object(torch.UntypedStorage, "resize_", resize))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Tensors made of tensors come back here in parts.
        if not all(map(_is_whole, types)):
            return NotImplemented
        result = self.call(func, args, kwargs or {})
        for tensor in _tensors(result):
            self.ledger.see(tensor.untyped_storage())
        namespace, _, name = func.name().partition("::")
        if namespace in _NAMESPACES and not name.lstrip("_").startswith(_EMPTY):
            self._exchanged(name, args, result)
        return result

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _exchanged(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        sides = [sum(_size(one) for one in _tensors(side)) for side in (*args, result)]
        self.traffic.add(Exchange(_kind(name), _ranks(args)), max(sides))


def _is_whole(kind: type) -> bool:
    return kind is FakeTensor or kind.__torch_dispatch__ is Tensor.__torch_dispatch__  # type: ignore[attr-defined]


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        return iter((value,))
    return (one for one in tree_iter(value) if isinstance(one, Tensor))


_KINDS = {
    "all_gather": ("allgather", "all_gather"),
    "reduce_scatter": ("reduce_scatter",),
    "all_reduce": ("allreduce", "all_reduce"),
    "all_to_all": ("alltoall", "all_to_all"),
    "broadcast": ("broadcast",),
}


def _kind(name: str) -> str:
    for kind, parts in _KINDS.items():
        if any(part in name for part in parts):
            return kind
    return name.strip("_")


def _ranks(args: tuple[Any, ...]) -> int:
    """The size of the group among the arguments of an exchange."""
    for one in args:
        if isinstance(one, torch.ScriptObject):
            try:
                return dist.ProcessGroup.unbox(one).size()
            except (RuntimeError, TypeError):  # the operation of a reduction
                continue
    for one in reversed(args):
        if isinstance(one, str):
            try:
                # The only way from the name that operations carry to the group.
                return distributed_c10d._resolve_process_group(one).size()  # type: ignore[arg-type, attr-defined]
            except (RuntimeError, ValueError):  # the name of the operation of a reduction
                continue
    return 1
