"""The few exchanges between ranks that a run needs beside those of its strategy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from stratrun.distributed.board import Board
from stratrun.distributed.env import ProcessEnv
from stratrun.errors import PeerError, StratrunError

T = TypeVar("T")
_record: Callable[[bool], None] = getattr(torch.autograd, "_enable_record_function", lambda on: None)


class Collectives:
    """Exchanges between all ranks; with one rank each of them is the identity.

    Every rank must make every call, in the same order. They travel over a CPU group of their
    own (`process_group.control_group`), so they never wait for a device.

    Args:
        board: Where ranks leave word for others that may not come (`process_group.message_board`).
        tells: Whether each exchange is told there, so that one that fails can name who was missing.
            It costs a message for each: not for those on a critical path.
    """

    def __init__(
        self,
        env: ProcessEnv,
        group: dist.ProcessGroup | None = None,
        board: Store | None = None,
        *,
        tells: bool = False,
    ) -> None:
        self._env = env
        self._group = group
        self.board: Board = Board(env.rank, env.world_size, board)
        self._tells = tells and board is not None
        self._count = 0
        self._over = ""

    @property
    def rank(self) -> int:
        return self._env.rank

    @property
    def world_size(self) -> int:
        return self._env.world_size

    @property
    def is_main(self) -> bool:
        return self._env.rank == 0

    @property
    def leads(self) -> bool:
        """Whether its results count, as those of the first of each group do of `DataRanks`."""
        return True

    @property
    def leads_node(self) -> bool:
        """Whether it is the first rank of its machine."""
        return self._env.local_rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks of a CPU tensor; the argument is left alone."""
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        self._exchange(lambda group: dist.all_reduce(total, group=group))
        return total

    def begin_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to replace a CPU tensor by its sum over ranks, which goes on beside whatever follows.

        Returns what waits for the end. The tensor is to be left alone until then.
        """
        if self.world_size == 1:
            return lambda: None
        work: list[Any] = []

        def begin(group: Any) -> None:
            # Not through torch's dispatcher: it takes twice as long, and whoever counts what the steps of a
            # run exchange would count this in. Nothing public leads past it.
            with _unprofiled():
                work.append(group._get_backend(tensor.device).allreduce([tensor]))

        self._exchange(begin)
        return lambda: self._exchange(lambda _: work.pop().wait())

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        self._exchange(lambda group: dist.all_gather_object(values, value, group=group))
        return values

    def gather_to_main(self, value: T) -> list[T] | None:
        """Every rank's value, by rank, on the main rank; None on the others."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_main else None
        self._exchange(lambda group: dist.gather_object(value, values, dst=0, group=group))
        return values

    def from_main(self, value: T) -> T:
        """Give every rank the main rank's value."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        self._exchange(lambda group: dist.broadcast_object_list(box, src=0, group=group))
        received: T = box[0]
        return received

    def scatter_from_main(self, values: list[T] | None) -> T:
        """Give each rank its entry of the main rank's list."""
        if self.world_size == 1:
            assert values is not None
            return values[0]
        box: list[Any] = [None]
        self._exchange(lambda group: dist.scatter_object_list(box, values, src=0, group=group))
        received: T = box[0]
        return received

    def barrier(self) -> None:
        if self.world_size > 1:
            self._exchange(lambda group: dist.barrier(group=group))

    def close(self) -> None:
        """End the group, after the last exchange."""
        self._over = self._over or "it comes after the last one"
        group, self._group = self._group, None
        if group is not None:
            dist.destroy_process_group(group)

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

    def behind(self) -> list[int]:
        """The ranks that came to fewer exchanges than others, as far as they tell."""
        counts = self.board.counts() if self._tells else [0]
        return [rank for rank, count in enumerate(counts) if count < max(counts)]

    def _exchange(self, call: Callable[[dist.ProcessGroup | None], object]) -> None:
        if self._over:
            raise PeerError(f"no exchange between ranks is possible any more: {self._over}")
        self._count += 1
        try:
            if self._tells:
                self.board.tell_count(self._count)
            call(self._group)
        except RuntimeError as error:
            # Whatever came next would be taken for what is missing of this one. Ending the group is also what
            # wakes the ranks that wait for this one, once nothing refers to it: the frames of the error did.
            error.__traceback__ = None
            self.close()
            missing = self._missing()
            self._over = f"one of them broke off, {missing}"
            raise PeerError(f"an exchange between ranks broke off: {missing}") from error

    def _missing(self) -> str:
        """Who did not come to the exchange that failed, as far as the board tells."""
        lost = self.board.lost()
        if lost is None and self.board.connected:
            return "rank 0, which keeps the messages of all, does not answer"
        if lost is None:
            return "another rank is gone, or did not come to it in time"
        counts = self.board.counts() if self._tells else []
        # Of those that can still say that they have lost others, none is the one that was lost first.
        late = [str(rank) for rank in lost if not counts or counts[rank] < self._count]
        if not late:
            return "another rank was lost in it"
        who = f"rank {late[0]} is" if len(late) == 1 else f"ranks {', '.join(late)} are"
        return f"{who} gone, or did not come to it in time"


def _known(kind: type[Exception]) -> type[StratrunError]:
    """The nearest class of ours: one of the user's may not travel, or not be made of a text."""
    for base in kind.__mro__:
        if issubclass(base, StratrunError) and base.__module__ == StratrunError.__module__:
            return base
    return StratrunError


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, StratrunError) else f"{type(error).__name__}: {error}"


@contextmanager
def _unprofiled() -> Iterator[None]:
    """Hide work from torch's profiler that may outlast it: its end would be noted in memory that is freed."""
    _record(False)
    try:
        yield
    finally:
        _record(True)
