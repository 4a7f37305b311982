"""What waits to be written by a thread beside the run."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic


@dataclass(slots=True)
class Call:
    """One call of a logger, to be made later."""

    verb: str
    make: Callable[[], None]
    size: int = 0
    """Bytes that it keeps in memory, roughly."""
    may_drop: bool = False
    """Whether it is a value, which may be left out where there is no room."""


class CallQueue:
    """Calls in their order, with room for so many values; `put` never waits.

    Where there is no room the oldest values make some. What is no value (a file, the end of the run) is kept.

    Args:
        capacity: How many values may wait.
        room: How many bytes they may have together.
    """

    def __init__(self, capacity: int, room: int = 2**28) -> None:
        self.capacity = capacity
        self.room = room
        self.dropped: int = 0
        self.finished: int = 0
        self.served: bool = False
        """Whether somebody takes the calls, and will take the next one."""
        self._calls: deque[Call] = deque()
        self._values = self._bytes = 0
        self._at_work: Call | None = None
        self._ended = False
        self._change = threading.Condition()

    def put(self, call: Call) -> int:
        """Add a call. Returns how many values were dropped for it."""
        with self._change:
            self._ended = False
            self._calls.append(call)
            self._count(call, 1)
            before = self.dropped
            while self._values > self.capacity or self._bytes > self.room:
                self._drop_oldest()
            self._change.notify_all()
            return self.dropped - before

    def take(self) -> Call | None:
        """The next call, once there is one, after which comes `done`; None at the end."""
        with self._change:
            self._change.wait_for(lambda: self._calls or self._ended)
            if not self._calls:
                self.served = False
                return None
            self._at_work = self._calls.popleft()
            self._count(self._at_work, -1)
            return self._at_work

    def done(self) -> None:
        with self._change:
            self._at_work = None
            self.finished += 1
            self._change.notify_all()

    def end(self) -> None:
        """Have `take` return None once nothing waits any more, until something is put again."""
        with self._change:
            self._ended = True
            self._change.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until all calls are made, so long at most. Returns whether they are."""
        until = monotonic() + seconds
        with self._change:
            while self._calls or self._at_work is not None:
                left = until - monotonic()
                if left <= 0:
                    return False
                self._change.wait(left)
            return True

    def waiting(self) -> list[str]:
        """The verbs of the calls that are not made yet, that at work included."""
        with self._change:
            at_work = [] if self._at_work is None else [self._at_work]
            return [call.verb for call in (*at_work, *self._calls)]

    def _count(self, call: Call, sign: int) -> None:
        if call.may_drop:
            self._values += sign
            self._bytes += sign * call.size

    def _drop_oldest(self) -> None:
        place = next(place for place, call in enumerate(self._calls) if call.may_drop)
        self._count(self._calls[place], -1)
        del self._calls[place]
        self.dropped += 1
