"""Word of a rank that leaves a pass over data, for others that are in theirs."""

import time

from stratrun.distributed.board import Board

# Seconds between two looks.
_EVERY = 0.5


class Lookout:
    """Looked out from by the clock, as ranks have batches of their own; none waits for another.

    Args:
        board: None in one process, where there is nothing to see.
    """

    def __init__(self, board: Board | None = None) -> None:
        self._board = board
        self._pass = 0
        self._next = 0.0

    def is_time(self) -> bool:
        """Whether to look again."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _EVERY
        return True

    def call(self) -> None:
        """Say that this rank leaves its pass."""
        if self._board is not None:
            self._board.leave_word(f"leaves/{self._pass}", "")

    def hears(self) -> bool:
        """Whether some rank has said so."""
        return self._board is not None and self._board.word(f"leaves/{self._pass}") is not None

    def next(self) -> None:
        """Begin another pass, on all ranks."""
        self._pass += 1
