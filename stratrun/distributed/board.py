"""Messages between ranks, of which none waits for another: for when one may not come."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from torch.distributed.distributed_c10d import Store

# How long a rank that failed in an exchange waits for what the others say of themselves.
_LAST_WORDS = timedelta(seconds=1)
# How long the others may take to fail in theirs, too.
_CASCADE = 2.0


class Board:
    """Where ranks leave word.

    Args:
        store: See `process_group.message_board`; without one nothing is ever heard of other ranks.
    """

    def __init__(self, rank: int, world_size: int, store: Store | None) -> None:
        self._rank = rank
        self._world_size = world_size
        self._store = store
        self._rounds: Counter[str] = Counter()

    def hear(
        self, label: str, text: Callable[[], str], seconds: float, unless: str | None = None
    ) -> list[str] | None:
        """What every rank says at this label, by rank; None if not all do within a time.

        Args:
            text: Gives what this rank says.
            unless: The label of a word that, once left, tells that it is in vain to wait.
        """
        if self._world_size == 1:
            return [text()]
        if self._store is None:
            return None
        # Numbered, as words that all have heard stay there for ever.
        keys = [f"here/{label}/{self._rounds[label]}/{rank}" for rank in range(self._world_size)]
        try:
            self._store.set(keys[self._rank], text())
            self._await(self._store, keys, seconds, unless)
            told = [self._store.get(key).decode() for key in keys]
        except (RuntimeError, TimeoutError):  # not there in time, or the rank that has the store is gone
            with suppress(RuntimeError):
                self._store.delete_key(keys[self._rank])
            return None
        self._rounds[label] += 1
        return told

    def leave_word(self, label: str, text: str) -> str:
        """Say something, and return what the first who did has said there."""
        if self._store is None:
            return text
        try:
            return self._store.compare_set(f"word/{label}", "", text).decode()
        except RuntimeError:  # the rank that has the store is gone
            return text

    def word(self, label: str) -> str | None:
        """The word that some rank has left."""
        key = f"word/{label}"
        try:
            if self._store is None or not self._store.check([key]):
                return None
            return self._store.get(key).decode()
        except RuntimeError:
            return None

    @property
    def connected(self) -> bool:
        """Whether there is anything to hear of others, as long as they are there."""
        return self._store is not None

    def lost(self) -> list[int] | None:
        """Say that an exchange broke off here, and return the ranks of which none did within a time.

        A rank that is killed takes those that wait for it with it, and they the next. They all come here,
        only the one that began it does not. None if there is no telling.
        """
        if self._store is None:
            return None
        keys = [f"broke/{rank}" for rank in range(self._world_size)]
        # Rank 0 may have the store: the others come to their ends first.
        end = time.monotonic() + _CASCADE + (0 if self._rank else _LAST_WORDS.total_seconds())
        try:
            self._store.set(keys[self._rank], "")
            while (late := [key for key in keys if not self._store.check([key])]) and time.monotonic() < end:
                time.sleep(0.05)
        except RuntimeError:  # the rank that has the store is gone
            return None
        return [keys.index(key) for key in late]

    def tell_count(self, count: int) -> None:
        """Say how many exchanges this rank has come to."""
        if self._store is not None:
            self._store.set(f"at/{self._rank}", str(count))

    def counts(self) -> list[int]:
        """How many exchanges each rank has come to, as far as it can be told; all 0 if it cannot."""
        return [self._count_of(rank) for rank in range(self._world_size)]

    def _await(self, store: Store, keys: list[str], seconds: float, unless: str | None) -> None:
        if unless is None:
            store.wait(keys, timedelta(seconds=seconds))
            return
        end, pause = time.monotonic() + seconds, 0.02
        # Not by short waits, as torch warns of each that is over.
        while not store.check(keys):
            if self.word(unless) is not None or time.monotonic() >= end:
                raise TimeoutError
            time.sleep(pause)
            pause = min(2 * pause, 0.5)  # many ranks ask the one that has the store

    def _count_of(self, rank: int) -> int:
        if self._store is None:
            return 0
        try:
            self._store.wait([f"at/{rank}"], _LAST_WORDS)
            return int(self._store.get(f"at/{rank}"))
        except RuntimeError:  # it never said anything, or the store is gone with its rank
            return 0
