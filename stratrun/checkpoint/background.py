"""Work beside the run, whose failure is raised where all ranks are."""

import threading
import time
from collections.abc import Callable

from stratrun.distributed import Collectives
from stratrun.errors import CheckpointError, PeerError

# What a thread that was given up by its group still needs to say so.
_GRACE = 5.0


class Background:
    """One piece of work at a time, in a thread of its own on every rank.

    The ranks begin and wait for it in the same order. If it fails, it fails on all of them; they then
    agree on the iteration at which to say so, as their loops may be at different ones.
    """

    def __init__(self, ranks: Collectives, limit: float) -> None:
        """
        Args:
            ranks: Exchanges that nobody else makes.
            limit: Seconds after which a piece of work counts as stuck.
        """
        self.ranks = ranks
        self._limit = limit
        self._thread: threading.Thread | None = None
        self._what = ""
        self._due = float("inf")
        self._error: Exception | None = None
        self._failed = threading.Event()
        self._settled = threading.Event()
        self._iteration = -1
        self._raise_at = 0

    def begin(self, work: Callable[[], None], what: str) -> None:
        """Start, after the work before has ended.

        Raises:
            CheckpointError: that has failed.
        """
        self.wait()
        self._what, self._due = what, time.monotonic() + self._limit + _GRACE
        # A process that is told to end does so: what matters waits for the thread.
        self._thread = threading.Thread(target=self._run, args=(work,), name="stratrun-save", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the work under way has ended.

        Raises:
            CheckpointError, PeerError: it failed; on all ranks.
        """
        thread = self._thread
        if thread is None:
            return
        # It is not due any more once it has ended.
        thread.join(min(max(0.0, self._due - time.monotonic()), self._limit + _GRACE))
        if thread.is_alive():
            self._give_up()
        self._thread = None
        self._raise()

    def raise_if_failed(self, iteration: int) -> None:
        """Raise what the work under way failed with. Ranks call it at each iteration, and raise at the same.

        Costs next to nothing while there is nothing to say.
        """
        # Written before the flag is read, and read by the thread after it is set: whoever misses
        # the flag here is known to have come no further than to the next call.
        self._iteration = iteration
        if self._failed.is_set():
            self._settled.wait(self._limit)
            if iteration >= self._raise_at:
                self._thread = None
                self._raise()
        elif self._thread is not None and time.monotonic() > self._due:
            self._give_up()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._error = error
            self._failed.set()
            self._raise_at = self._agreed_iteration(error)
            self._settled.set()
        finally:
            self._due = float("inf")

    def _agreed_iteration(self, error: Exception) -> int:
        """The first iteration that no rank has passed, once all know that there is something to raise."""
        if isinstance(error, PeerError):
            return 0
        try:
            return max(self.ranks.gather(self._iteration)) + 1
        except PeerError:
            return 0

    def _raise(self) -> None:
        error, self._error = self._error, None
        self._failed.clear()
        self._settled.clear()
        if error is not None:
            raise error

    def _give_up(self) -> None:
        self._thread, self._due = None, float("inf")
        raise CheckpointError(
            f"{self._what} has not ended within {self._limit:g} s on this rank; its storage does not answer "
            "(checkpoint_cfg=dict(deadline=...) sets the time)"
        )
