"""Copies of a state in host memory, which the loop waits for so that the rest can happen beside it."""

import mmap
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stratrun.spread import local_part

# A processor fetches whole lines, and a disk that is written from here whole pages.
_LINE = 64
_HUGE_PAGE = 2 << 20


class Staging:
    """One place in host memory, taken once and used for every save.

    Copying into memory that was never touched costs several times the copy, so a run reserves it
    ahead. What `take` gave is overwritten by the next `take`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plain = _Slab(pinned=False)
        self._pinned = _Slab(pinned=True)
        self._events: list[Any] = []

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies by name, dense and contiguous; of tensors spread over ranks the part held here.

        Those of a CUDA device are complete after `wait`. Changing the originals is safe at once.
        """
        with self._lock:
            local = {name: local_part(tensor) for name, tensor in tensors.items()}
            on_cuda = {name for name, tensor in local.items() if tensor.device.type == "cuda"}
            made = self._plain.copy({n: t for n, t in local.items() if n not in on_cuda})
            made |= self._pinned.copy({n: t for n, t in local.items() if n in on_cuda})
            for device in {local[name].device for name in on_cuda}:
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(device))
                self._events.append(event)
        return {name: made[name] for name in tensors}

    def wait(self) -> None:
        """Return when every copy that was taken is complete."""
        with self._lock:
            for event in self._events:
                event.synchronize()
            self._events.clear()

    def reserve(self, nbytes: int, *, pinned: bool = False) -> None:
        """Take the memory ahead and touch it. From any thread; `pinned` for tensors of a CUDA device."""
        with self._lock:
            (self._pinned if pinned else self._plain).reserve(nbytes)

    def release(self) -> None:
        """Give the memory back; what was taken is gone."""
        with self._lock:
            self._plain, self._pinned = _Slab(pinned=False), _Slab(pinned=True)


@dataclass
class _Slab:
    """Memory of one kind, and how it was last divided among tensors."""

    pinned: bool
    _memory: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    _views: dict[str, Tensor] = field(default_factory=dict)

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self._fits(tensors):
            self._lay_out(tensors)
        for name, tensor in tensors.items():
            self._views[name].copy_(tensor, non_blocking=self.pinned)
        return dict(self._views)

    def reserve(self, nbytes: int) -> None:
        if nbytes > len(self._memory):
            # One page more than that: tensors start at lines, and small ones come that nobody has counted.
            # Taking all of it anew for them is what this is to spare the first save.
            size = (-(-nbytes // _HUGE_PAGE) + 1) * _HUGE_PAGE
            self._views = {}
            self._memory = torch.empty(0, dtype=torch.uint8)  # given back before more is taken
            self._memory = _pinned(size) if self.pinned else _mapped(size)

    def _fits(self, tensors: Mapping[str, Tensor]) -> bool:
        views = self._views
        return views.keys() == tensors.keys() and all(
            views[name].shape == tensor.shape and views[name].dtype == tensor.dtype
            for name, tensor in tensors.items()
        )

    def _lay_out(self, tensors: Mapping[str, Tensor]) -> None:
        places, end = [], 0
        for tensor in tensors.values():
            places.append(end)
            end += _rounded(tensor.numel() * tensor.element_size())
        self.reserve(end)
        self._views = {
            name: _view(self._memory, at, tensor)
            for at, (name, tensor) in zip(places, tensors.items(), strict=True)
        }


def _view(memory: Tensor, at: int, like: Tensor) -> Tensor:
    size = like.numel() * like.element_size()
    if not size:
        return torch.empty(like.shape, dtype=like.dtype)
    return memory[at : at + size].view(like.dtype).view(like.shape)


def _rounded(size: int) -> int:
    return -(-size // _LINE) * _LINE


def _mapped(size: int) -> Tensor:
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).zero_()


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
