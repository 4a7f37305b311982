"""Numbers left on their devices until all of them are read at once."""

import torch
from torch import Tensor

from stratrun.host_numbers import value_in_host

_CHUNK = 1024

Taken = float | int
"""A number (always a float), or the place of one that is not read yet (always an int)."""


class Unread:
    """Takes numbers, on the host or on any device, and reads them with one transfer a device."""

    def __init__(self) -> None:
        self._count = 0
        self._slots: dict[torch.device, _Slots] = {}

    def take(self, number: Tensor | float) -> Taken:
        """Keep a number until it is read; one that is on the host is had at once."""
        if not isinstance(number, Tensor):
            return float(number)
        value = value_in_host(number)
        if value is not None:
            return value
        device = number.device
        slots = self._slots.get(device)
        if slots is None:
            slots = self._slots[device] = _Slots(device)
        place = self._count
        slots.put(number, place)
        self._count = place + 1
        return place

    def read(self) -> list[float]:
        """All tensors by their places; then there are none. This waits for the devices."""
        numbers = [0.0] * self._count
        self._count = 0
        for slots in self._slots.values():
            slots.read_into(numbers)
        return numbers


def number_of(taken: Taken, numbers: list[float]) -> float:
    """The number itself, given what `read` returned."""
    return numbers[taken] if type(taken) is int else taken


class _Slots:
    """Memory on one device for many single numbers.

    Each is copied, because its own storage may be used again: by a model that logs a buffer, or
    by the replay of a captured graph. Copying into slots that are kept costs half of cloning, and
    leaves nothing to be joined when they are read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Holds every smaller type exactly; not all devices have it.
        self._dtype = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
        self._chunks: list[Tensor] = []
        self._slots: list[Tensor] = []
        self._places: list[int] = []

    def put(self, number: Tensor, place: int) -> None:
        used = len(self._places)
        if used == len(self._slots):
            self._grow()
        if number.requires_grad:
            number = number.detach()
        if number.ndim:
            number = number.reshape(())
        self._slots[used].copy_(number)
        self._places.append(place)

    def read_into(self, numbers: list[float]) -> None:
        places, self._places = self._places, []
        if not places:
            return
        filled = self._chunks[: -(-len(places) // _CHUNK)]
        joined = filled[0] if len(filled) == 1 else torch.cat(filled)
        for place, number in zip(places, joined[: len(places)].tolist(), strict=True):
            numbers[place] = number

    def _grow(self) -> None:
        # A tensor made in inference mode could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            chunk = torch.empty(_CHUNK, dtype=self._dtype, device=self._device)
            self._chunks.append(chunk)
            self._slots += chunk.unbind()
