"""What a loss may be at most."""

from math import inf, isfinite, nan

import torch
from torch import Tensor

from stratrun.host_numbers import finite_in_host, value_in_host
from stratrun.state import BatchInfo


class LossLimit:
    """A limit for losses, which the host looks at where that is free, and the device everywhere else."""

    def __init__(self) -> None:
        self.value: float = inf
        self._is_set = False
        self._there = torch.full((), inf)

    def set(self, limit: float) -> None:
        """Take another limit, without waiting for the device; infinity for none."""
        self.value, self._is_set = limit, True
        self._there.fill_(limit)

    def to(self, device: torch.device) -> None:
        self._there = self._there.to(device)

    def admits(self, loss: Tensor, batch: BatchInfo) -> bool | None:
        """Whether it is finite and within the limit; None where that cannot be had without an operation."""
        if not self._is_set:
            return finite_in_host(loss)
        value = value_in_host(loss)
        return None if value is None else isfinite(value) and (value <= self.value or batch.size == 0)

    def marked(self, factor: Tensor, loss: Tensor, batch: BatchInfo) -> Tensor:
        """A factor that is NaN where the loss is above the limit. A batch that counts nothing has none."""
        if not self._is_set or batch.size == 0:
            return factor
        return torch.where(loss.detach().view(factor.shape) > self._there, nan, factor)
