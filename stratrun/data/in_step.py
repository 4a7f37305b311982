"""As many forward passes on every rank, where one that makes more would wait for the others for ever."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from stratrun.data.order import Share
from stratrun.errors import DataError

_BATCH = ""
"""What a rank says that has another batch, where one that makes a step says which."""


class Exchange(Protocol):
    """What keeping in step needs of the ranks."""

    @property
    def rank(self) -> int: ...

    def gather(self, value: Any, /) -> list[Any]: ...


class InStep:
    """Evaluation over ranks that have different numbers of batches, if a forward pass is an exchange.

    While every rank has a batch, nothing is done. From the first batch on that some rank lacks, each step is
    announced, and a rank that has no more batches makes the same step with one that it had, or was
    sent, and drops the result. So loops, hooks and metrics see the samples of their rank and nothing
    else, whatever steps a loop makes of a batch, and on a rank without a single sample too.

    Args:
        ranks: Exchanges between ranks that have different samples.
        step: Makes a step, given a batch in host memory and the kind of step; nobody sees its result.
        to_host: Brings a batch to where it can be sent from.
    """

    def __init__(
        self, ranks: Exchange, step: Callable[[Any, str], object], to_host: Callable[[Any], Any]
    ) -> None:
        self._ranks = ranks
        self._step = step
        self._to_host = to_host
        self._apart = False
        self._asks = False
        self._passes: list[object] = []
        self._kept: list[Any] = []
        """The latest batch of this rank, to be repeated; empty before the first."""

    @property
    def parted(self) -> bool:
        """Whether some rank lacks the batch that others have in hand. All that have it are told the same."""
        return self._apart

    def over(
        self,
        batches: Iterator[tuple[Any, Share]],
        everywhere: Callable[[Share], bool] | None,
        length: int | None,
    ) -> Iterator[tuple[Any, Share]]:
        """The batches of a pass over evaluation data. Ends when those of all ranks have ended.

        Args:
            everywhere: Tells by the share of a batch whether each rank has one of it.
            length: Where that cannot be told: how many batches this rank has, if known.
        """
        if not self._passes:
            self.settle()  # another pass, if a loop broke it off
        mine = object()
        self._passes.append(mine)
        try:
            if everywhere is not None or self._apart:
                yield from self._noted(batches, everywhere or (lambda share: False))
            else:
                yield from self._counted(batches, length)
            # Whoever has another batch of this pass announces from now on what it does with it, or asks.
            self._apart = True
            last = self._passes == [mine]
        finally:
            if mine in self._passes:
                self._passes.remove(mine)
        if last:
            self.settle()

    def announce(self, batch: Any, mode: str) -> None:
        """Say that this rank makes a step now, if others may have to make it without a batch."""
        if self._apart:
            self._say(mode, batch)

    def settle(self) -> None:
        """Make the steps that ranks still make which have more batches, until none has.

        Every rank calls it before whatever they exchange after a pass that may have been broken off.
        """
        if not self._apart and not self._asks:
            return
        while (said := self._say(None)) is not None:
            if said != _BATCH:
                self._step(self._kept[0], said)
        self._apart = self._asks = False
        self._kept.clear()

    def _noted(
        self, batches: Iterator[tuple[Any, Share]], everywhere: Callable[[Share], bool]
    ) -> Iterator[tuple[Any, Share]]:
        for batch, share in batches:
            if not everywhere(share):
                self._apart = True
            self._kept[:] = [batch]
            yield batch, share

    def _counted(
        self, batches: Iterator[tuple[Any, Share]], length: int | None
    ) -> Iterator[tuple[Any, Share]]:
        """Batches of data that is not shared out by us, so that each rank knows of its own only."""
        lengths = self._ranks.gather(length)
        if None in lengths:
            self._asks = True
            yield from self._noted(batches, lambda share: self._apart or self._say(_BATCH) is not None)
            return
        numbers = iter(range(min(lengths)))
        yield from self._noted(batches, lambda share: next(numbers, None) is not None)
        missing = sum(1 for _ in numbers)
        if missing:
            raise DataError(
                f"the data said that it has {length} batches, and ended {missing} before the {min(lengths)} "
                "that every rank was to have; correct its __len__, or leave it out"
            )

    def _say(self, word: str | None, batch: Any = None) -> str | None:
        """Tell the ranks that this one makes a step, or has another batch (""), or no more (None).

        Returns:
            What those say that have more; None when none has.
        """
        heard = self._ranks.gather((word, bool(self._kept)))
        words = [one for one, _ in heard]
        self._apart = self._apart or None in words
        said = list(dict.fromkeys(one for one in words if one is not None))
        if len(said) > 1:
            told = ", ".join(f"rank {rank}: {one or 'none'}" for rank, one in enumerate(words))
            raise DataError(
                f"the ranks make different steps at the same time ({told}), and each step waits for all of "
                "them; have a loop make the same steps of every batch"
            )
        mode = said[0] if said else None
        if mode and not all(has for _, has in heard):
            self._send(words.index(mode), batch)
        return mode

    def _send(self, sender: int, batch: Any) -> None:
        """Give a batch to the ranks that never had one."""
        sent = self._ranks.gather(self._to_host(batch) if self._ranks.rank == sender else None)
        if not self._kept:
            self._kept[:] = [sent[sender]]
