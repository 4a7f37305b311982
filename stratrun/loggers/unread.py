"""Numbers left on their devices until all of them are read at once."""

import torch
from torch import Tensor

_CHUNK = 1024


class Unread:
    """Takes numbers, on the host or on any device, and reads them with one transfer a device."""

    def __init__(self) -> None:
        self._numbers: list[float] = []
        self._slots: dict[torch.device, _Slots] = {}

    def take(self, number: Tensor | float) -> int:
        """Keep a number; returns its place in what `read` will return."""
        place = len(self._numbers)
        if isinstance(number, Tensor):
            device = number.device
            slots = self._slots.get(device)
            if slots is None:
                slots = self._slots[device] = _Slots(device)
            slots.put(number, place)
            number = 0.0
        self._numbers.append(number)
        return place

    def read(self) -> list[float]:
        """All numbers by place; then there are none. This waits for the devices."""
        numbers, self._numbers = self._numbers, []
        for slots in self._slots.values():
            slots.read_into(numbers)
        return [float(number) for number in numbers]


class _Slots:
    """Memory on one device for many single numbers.

    Each is copied, because its own storage may be used again: by a model that logs a buffer, or
    by the replay of a captured graph. Copying into slots that are kept costs half of cloning, and
    leaves nothing to be joined when they are read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Holds every smaller type exactly; not all devices have it.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
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
