"""What memory was held when, and what of it was for what."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

OTHER = "activations"
"""Memory that nobody has named: what the forward pass keeps, and what operations need beside it."""
REGAINED = "gathered"
"""Memory that is given back while its tensor lives, and taken again: gathered parameters, kept as objects."""


@dataclass(slots=True)
class Peak:
    """The moment at which most was held."""

    total: int = 0
    phase: str = ""
    parts: dict[str, int] = field(default_factory=dict)


class Ledger:
    """Every storage that comes and goes, in order. What each is for may be said later.

    Storages are told apart by objects of Python's that torch keeps for as long as the memory is there.
    """

    def __init__(self) -> None:
        self.live: int = 0
        self.phase: str = ""
        self._events: list[tuple[int, int] | str] = []
        self._serials: dict[int, int] = {}
        self._sizes: list[int] = []
        self._kinds: dict[int, str] = {}
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def see(self, storage: torch.UntypedStorage) -> int:
        """Take note of a storage, or of what has become of one. Returns the number it goes by here."""
        key, size = id(storage), storage.nbytes()
        serial = self._serials.get(key)
        if serial is None:
            serial = self._serials[key] = len(self._sizes)
            self._sizes.append(0)
            self._references[key] = weakref.ref(storage, lambda _: self._forget(key))
        if size != self._sizes[serial]:
            self._to(serial, size)
        return serial

    def resized(self, storage: torch.UntypedStorage) -> None:
        serial = self.see(storage)
        self._kinds.setdefault(serial, REGAINED)

    def mark(self, phase: str) -> None:
        """Say what goes on from here."""
        self.phase = phase
        self._events.append(phase)

    def name(self, tensors: Iterable[Tensor], kind: str) -> int:
        """Say what tensors are for. Returns how much memory they have, each once."""
        serials = {self.see(one.untyped_storage()) for tensor in tensors for one in plain(tensor)}
        for serial in serials:
            self._kinds[serial] = kind
        return sum(self._sizes[serial] for serial in serials)

    def most(self) -> tuple[Peak, dict[str, int]]:
        """The moment at which most was held since the first mark, and the most of each kind since then."""
        peak, now, sizes = Peak(), Counter[str](), [0] * len(self._sizes)
        highest: dict[str, int] = {}
        total, phase = 0, ""
        for event in self._events:
            if isinstance(event, str):
                phase, kinds = event, list(now)
            else:
                serial, size = event
                kinds = [self._kinds.get(serial, OTHER)]
                change, sizes[serial] = size - sizes[serial], size
                total += change
                now[kinds[0]] += change
            if not phase:
                continue
            for kind in kinds:
                highest[kind] = max(highest.get(kind, 0), now[kind])
            if total > peak.total:
                peak = Peak(total, phase, {key: value for key, value in now.items() if value})
        return peak, highest

    def _to(self, serial: int, size: int) -> None:
        self.live += size - self._sizes[serial]
        self._sizes[serial] = size
        self._events.append((serial, size))

    def _forget(self, key: int) -> None:
        serial = self._serials.pop(key)
        del self._references[key]
        self._to(serial, 0)


def plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with memory of their own that a tensor is made of: itself, or its part on this rank."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for part in (getattr(tensor, name) for name in names):
        if isinstance(part, Tensor):
            yield from plain(part)
