"""Updates on a device that drops them by itself, and is not waited for."""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from stratrun.engine.finite_told import Loss
from stratrun.engine.non_finite import NonFinite

LAG = 1
"""Updates that are under way before the first of them is heard of: the device has the passes of the latest to
work on meanwhile. Fixed, so that all ranks hear of an update at the same place."""


class _Launched(NamedTuple):
    """An update that was begun, and nobody has heard of."""

    flag: Tensor
    """Copied to where it can be read, once `done`."""
    done: torch.cuda.Event | None
    losses: list[Loss]


class Late:
    """Flags of updates under way.

    Fused optimizers ask the flag of the guard, in their kernel, whether to update. Unless updates are merely
    skipped it stays set, so that no later one is made before the run hears of the first.
    """

    def __init__(self, flag: Tensor, *, stays: bool) -> None:
        self._flag = flag
        self._stays = stays
        self._launched: deque[_Launched] = deque()

    @classmethod
    def of(cls, settings: NonFinite, optimizers: Mapping[str, Optimizer], flag: Tensor) -> Self | None:
        """None where some optimizer cannot ask, or what it did not do could not be told apart."""
        asking = all(map(_asks, optimizers.values()))
        skips = settings.policy == "skip"
        if not asking or (skips and len(optimizers) > 1):
            return None
        for one in optimizers.values():
            given: Any = one
            given.found_inf = flag
        return cls(flag, stays=not skips)

    def launch(self, losses: list[Loss]) -> tuple[bool, list[Loss]] | None:
        """Take note of an update that begins now; what became of one from before, which is known now."""
        self._launched.append(self._copied(losses))
        return self.next() if len(self._launched) > LAG else None

    def next(self) -> tuple[bool, list[Loss]] | None:
        """What became of the oldest update: whether it was dropped, and the losses behind it."""
        if not self._launched:
            return None
        flag, done, losses = self._launched.popleft()
        if done is not None:
            done.synchronize()
        return bool(flag), losses

    def begin(self) -> None:
        """Before gradients are looked at."""
        if not self._stays:
            self._flag.zero_()

    def clear(self) -> None:
        """Go on with updates, whatever became of those under way."""
        self._launched.clear()
        self._flag.zero_()

    def _copied(self, losses: list[Loss]) -> _Launched:
        if not self._flag.is_cuda:
            return _Launched(self._flag.clone(), None, losses)
        copy = torch.empty((), dtype=self._flag.dtype, pin_memory=True)
        copy.copy_(self._flag, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return _Launched(copy, done, losses)


def _asks(optimizer: Optimizer) -> bool:
    """Whether the flag decides on an update of all its groups, each of which may be set otherwise."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
