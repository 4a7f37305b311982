"""Work that succeeds on all ranks or fails on all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from stratrun.distributed.collectives import Collectives
from stratrun.errors import CheckpointError

T = TypeVar("T")
LOOK_EVERY = 1.0
"""Seconds between two looks at what other ranks report."""


def together(ranks: Collectives, what: str, action: Callable[[], T], *, plainly: bool = False) -> T:
    """Run an action on every rank and return its result once all have succeeded.

    Args:
        plainly: Errors say by themselves what of: they stay as they are, and the same on all is told once.

    Raises:
        CheckpointError: it failed on some rank; the same class of error on all of them.
    """
    error: Exception | None = None
    result: T | None = None
    try:
        result = action()
    except Exception as cause:
        error = cause
        if not plainly:
            error = _as_ours(cause, what if ranks.world_size == 1 else "")
            error.__cause__ = cause
    if plainly:
        told = ranks.gather(None if error is None else str(error))
        if error is not None and set(told) == {str(error)}:
            raise error
    ranks.agree(error, what)
    return cast(T, result)


def decided_by_main(ranks: Collectives, what: str, action: Callable[[], T], *, plainly: bool = False) -> T:
    """Run an action on the main rank alone and give its result to all."""
    result = together(ranks, what, lambda: action() if ranks.is_main else None, plainly=plainly)
    return cast(T, ranks.from_main(result))


@dataclass(frozen=True, slots=True)
class Alarm:
    """Word of a failure, for ranks that work each by itself until they come together again."""

    ranks: Collectives
    label: str
    what: str

    def call(self, text: str) -> None:
        self.ranks.board.leave_word(self.label, text)

    def heard(self) -> str | None:
        """What the first that called has said."""
        return self.ranks.board.word(self.label)

    def call_for(self, error: Exception) -> None:
        """Say of this rank what all will be told once they have come together."""
        text = str(_as_ours(error, ""))
        self.call(f"{self.what} failed on rank {self.ranks.rank}: {text}")


def _as_ours(cause: Exception, what: str) -> CheckpointError:
    before = f"{what} failed: " if what else ""
    if isinstance(cause, CheckpointError):
        return type(cause)(f"{before}{cause}")
    return CheckpointError(f"{before}{type(cause).__name__}: {cause}")
