"""The few exchanges between ranks that a run needs beside those of its strategy."""

from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from stratrun.distributed.env import ProcessEnv
from stratrun.errors import StratrunError

T = TypeVar("T")


class Collectives:
    """Exchanges between all ranks; with one rank each of them is the identity.

    Every rank must make every call, in the same order. They travel over a CPU group of their
    own (`process_group.control_group`), so they never wait for a device.
    """

    def __init__(self, env: ProcessEnv, group: dist.ProcessGroup | None = None) -> None:
        self._env = env
        self._group = group

    @property
    def rank(self) -> int:
        return self._env.rank

    @property
    def world_size(self) -> int:
        return self._env.world_size

    @property
    def is_main(self) -> bool:
        return self._env.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks of a CPU tensor; the argument is left alone."""
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total, group=self._group)
        return total

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def gather_to_main(self, value: T) -> list[T] | None:
        """Every rank's value, by rank, on the main rank; None on the others."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, values, dst=0, group=self._group)
        return values

    def from_main(self, value: T) -> T:
        """Give every rank the main rank's value."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        received: T = box[0]
        return received

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self._group)

    def close(self) -> None:
        """End the group, after the last exchange."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def agree(self, error: Exception | None, what: str) -> None:
        """Tell all ranks whether any of them failed, and fail together if one did.

        Also a barrier: none goes on before all have come here.

        Args:
            error: What went wrong on this rank, if anything.
            what: What was being done, for the message.

        Raises:
            StratrunError: some rank failed. Of the class of the first failure that is one of ours,
                and with the cause attached on the rank where it arose.
        """
        if self.world_size == 1:
            if error is not None:
                raise error
            return
        mine = None if error is None else (_known(type(error)), _told(error))
        failures = [(rank, f) for rank, f in enumerate(self.gather(mine)) if f is not None]
        if not failures:
            return
        kind = next((k for _, (k, _) in failures if k is not StratrunError), StratrunError)
        told = "; ".join(f"rank {rank}: {text}" for rank, (_, text) in failures)
        raise kind(f"{what} failed on {told}") from error


def _known(kind: type[Exception]) -> type[StratrunError]:
    """The nearest class of ours: one of the user's may not travel, or not be made of a text."""
    for base in kind.__mro__:
        if issubclass(base, StratrunError) and base.__module__ == StratrunError.__module__:
            return base
    return StratrunError


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, StratrunError) else f"{type(error).__name__}: {error}"
