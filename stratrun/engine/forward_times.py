"""How long forward passes take, by the clock of whatever computes them."""

from collections import deque
from time import perf_counter
from typing import Any

import torch
from torch import nn

LIMIT = 1000
"""As many of the last passes are kept."""


class ForwardTimes:
    """Times each training forward of a module, without waiting for any.

    On a device that works by itself the times are its own, taken by marks in the queue of its work;
    elsewhere they are the host's.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._device = device
        self._queued = device.type not in ("cpu", "mps")
        self._begun: Any = None
        # Bounded, should nobody ask.
        self._pairs: deque[tuple[Any, Any]] = deque(maxlen=LIMIT)
        self._handles = [
            module.register_forward_pre_hook(self._begin),
            module.register_forward_hook(self._end),
        ]

    def take(self) -> list[float]:
        """Seconds of the passes since the last call; those that are still under way are left for the next."""
        done = []
        while self._pairs and (not self._queued or self._pairs[0][1].query()):
            done.append(self._pairs.popleft())
        if self._queued:
            return [begun.elapsed_time(ended) / 1000 for begun, ended in done]
        return [ended - begun for begun, ended in done]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._pairs.clear()

    def _mark(self) -> Any:
        if not self._queued:
            return perf_counter()
        mark = torch.Event(self._device, enable_timing=True)
        mark.record()
        return mark

    def _begin(self, module: nn.Module, args: Any) -> None:
        # A mark that is captured with the pass is none.
        if module.training and not (self._queued and torch.cuda.is_current_stream_capturing()):
            self._begun = self._mark()

    def _end(self, module: nn.Module, args: Any, result: Any) -> None:
        if module.training and self._begun is not None:
            self._pairs.append((self._begun, self._mark()))
            self._begun = None
