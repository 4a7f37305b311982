"""Work beside the run, whose failure is raised where all ranks are."""

import logging
import threading
import time
from collections.abc import Callable

from stratrun.checkpoint.agreement import LOOK_EVERY, Alarm
from stratrun.distributed import Collectives
from stratrun.errors import CheckpointError, StratrunError

_LOG = logging.getLogger("stratrun.checkpoint")
# Seconds for the work of a rank to end by itself when another has reported a failure.
_GRACE = 3.0
# Seconds for all ranks to know of a failure: they look, wait for their work, and tell where they are.
_PATIENCE = LOOK_EVERY + _GRACE + 2.0


class Background:
    """One piece of work at a time, in a thread of its own on every rank.

    The ranks begin and wait for it in the same order. If it fails, it fails on all of them; they then
    agree on the iteration at which to say so, as their loops may be at different ones. A second thread
    watches the first: that may be stuck in a write, or in an exchange that another rank does not come to.
    """

    def __init__(self, ranks: Collectives, limit: float) -> None:
        """
        Args:
            ranks: Exchanges that nobody else makes.
            limit: Seconds after which a piece of work counts as stuck.
        """
        self.ranks = ranks
        self._limit = limit
        self._count = 0
        self._worker: threading.Thread | None = None
        self._error: Exception | None = None
        self._failed = threading.Event()
        self._done = threading.Event()
        self._done.set()
        self._iteration = -1
        self._raise_at = 0

    def clear(self, what: str) -> Alarm:
        """Have nothing under way. Returns the alarm of what comes next, in a thread or not.

        Raises:
            CheckpointError: what was under way has failed, or still hangs.
        """
        self.wait()
        if self.is_stuck():
            raise CheckpointError(f"{what} cannot begin: the one before is still stuck on this rank")
        self._count += 1
        return Alarm(self.ranks, f"work/{self._count}", what)

    def begin(self, work: Callable[[], None], alarm: Alarm) -> None:
        """Start, with the alarm that `clear` gave."""
        self._done.clear()
        # The interpreter waits for this one before it ends, so that it can say what became of the work.
        threading.Thread(target=self._watch, args=(work, alarm), name="stratrun-save-watch").start()

    def wait(self) -> None:
        """Return when the work under way has ended.

        Raises:
            CheckpointError, PeerError: it failed; on all ranks.
        """
        self._done.wait()
        self._raise()

    def raise_if_failed(self, iteration: int) -> None:
        """Raise what the work under way failed with. Ranks call it at each iteration, and raise at the same.

        Costs next to nothing while there is nothing to say.
        """
        # Written before the flag is read, and read by the watch after it is set: whoever misses
        # the flag here is known to have come no further than to the next call.
        self._iteration = iteration
        if self._failed.is_set():
            self._done.wait()
            if iteration >= self._raise_at:
                self._raise()

    def is_stuck(self) -> bool:
        """Whether work that was given up has not ended yet, though it had some time to."""
        if self._worker is not None:
            self._worker.join(_GRACE)
        return self._worker is not None and self._worker.is_alive()

    def _watch(self, work: Callable[[], None], alarm: Alarm) -> None:
        try:
            error = self._outcome(work, alarm)
            if error is not None:
                self._error = self._same_for_all(error, alarm)
                self._failed.set()
                self._raise_at = self._agreed_iteration(alarm)
                if not threading.main_thread().is_alive():
                    _LOG.error("%s", self._error)  # nobody is left to raise it
        finally:
            self._done.set()

    def _outcome(self, work: Callable[[], None], alarm: Alarm) -> Exception | None:
        """Do the work, and return why it failed or is given up."""
        failures: list[BaseException] = []

        def attempt() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        # One that hangs must not keep the interpreter from its end.
        worker = threading.Thread(target=attempt, name="stratrun-save", daemon=True)
        self._worker = worker
        worker.start()
        due = time.monotonic() + self._limit
        told: str | None = None
        while True:
            worker.join(max(0.0, min(LOOK_EVERY, due - time.monotonic())))
            if not worker.is_alive():
                return _told_by(failures[0], alarm) if failures else None
            if time.monotonic() >= due:
                return CheckpointError(told or self._overdue(alarm.what))
            if told is None and (told := alarm.heard()) is not None:
                due = min(due, time.monotonic() + _GRACE)

    def _overdue(self, what: str) -> str:
        behind = self.ranks.behind()
        who = f"rank {', '.join(map(str, behind))}" if behind else "storage"
        return (
            f"{what} has not ended within {self._limit:g} s: {who} does not answer "
            "(checkpoint_cfg=dict(deadline=...) sets the time)"
        )

    def _same_for_all(self, error: Exception, alarm: Alarm) -> Exception:
        """What to raise: that of the rank that was first to know how it ends."""
        told = self.ranks.board.leave_word(f"{alarm.label}/end", str(error))
        alarm.call(told)
        if told == str(error):
            return error
        adopted = CheckpointError(told)
        adopted.__cause__ = error
        return adopted

    def _agreed_iteration(self, alarm: Alarm) -> int:
        """The first iteration that no rank has passed, once all know that there is something to raise."""
        told = self.ranks.board.hear(f"{alarm.label}/at", lambda: str(self._iteration), _PATIENCE)
        return 0 if told is None else max(map(int, told)) + 1

    def _raise(self) -> None:
        error, self._error = self._error, None
        self._failed.clear()
        if error is not None:
            raise error


def _told_by(error: BaseException, alarm: Alarm) -> Exception:
    if isinstance(error, StratrunError):
        return error
    ours = CheckpointError(f"{alarm.what} failed on rank {alarm.ranks.rank}: {type(error).__name__}: {error}")
    ours.__cause__ = error
    return ours
