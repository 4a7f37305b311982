"""What changes the course of a run: signals, the clock and requests, in training and in evaluations."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stratrun.control.agreement import OVERTIME, Agreement
from stratrun.control.exchange import Exchange
from stratrun.control.lookout import Lookout
from stratrun.control.settings import ControlSettings
from stratrun.control.signals import SignalTrap
from stratrun.data import worker_signals
from stratrun.distributed import Collectives
from stratrun.state import TrainState


class Control(Agreement):
    """What ranks agree upon, beginning with what comes from outside; and the ends of passes of evaluation."""

    def __init__(self, state: TrainState) -> None:
        super().__init__(state)
        self.flagged: bool = False
        """Whether this process is to leave a pass of evaluation: a signal has come, or its time is over."""
        self.poll: Callable[[], bool] | None = None
        """Asked within a pass of evaluation whether to leave it. None where `flagged` says it all."""
        self._alone = False
        self._apart = True
        self._together: Callable[[], bool] = lambda: False
        self._looks = 0
        self._lookout = Lookout()

    def connect(
        self,
        ranks: Collectives,
        settings: ControlSettings,
        *,
        settle: Callable[[], None],
        apart: bool,
        together: Callable[[], bool],
    ) -> list[Callable[[int], None]]:
        """Take part in a run. Returns what is to be called after each iteration.

        Args:
            ranks: Exchanges that nobody else makes.
            settle: Called before the ranks come together.
            apart: Whether ranks may leave a pass of evaluation each at a batch of its own.
            together: Where they may not: whether all ranks have the batch in hand. All that do get the same
                answer.
        """
        self._settings, self._alone = settings, ranks.world_size == 1
        self._apart, self._together = apart or self._alone, together
        if ranks.world_size > 1:
            self._exchange, self._settle, self._lookout = Exchange(ranks), settle, Lookout(ranks.board)
            self.state.ask = self.request
            return [self._look]
        return [] if settings.time_limit is None else [lambda _: self._watch_time()]

    @contextmanager
    def job(self, name: str, settings: ControlSettings, *, launched: bool, prompt: bool) -> Iterator[str]:
        """Take signals for as long as a job is made ready and done. Gives why not, if that cannot be."""
        outer = self.doing
        if not outer:
            self.state.begin_job()
            self._settings, self.doing = settings, name
            self.flagged, self._signal = False, 0
            self._wishes.clear()
            self._seconds, self._started = 0.0, time.monotonic()
        numbers = () if outer else settings.numbers
        trap = SignalTrap(numbers, self._note, launched=launched, prompt=prompt)
        try:
            with worker_signals.stay():
                yield trap.set()
        except BaseException:
            if self._exchange is not None and not outer:
                self._exchange.abandon()
            raise
        finally:
            trap.release()
            self.doing = outer
        # Of one that came when all was done nobody else hears any more: it ends this process.
        if not outer and self._signal > 0 and self._is_news(self._signal):
            self._stop_by(self._signal)

    def start(self) -> None:
        """Agree on what came while the job was made ready."""
        if self._exchange is not None:
            self._exchange.start(self.state.iter, time.monotonic())
        limited = self.doing == "train" and self._settings.time_limit is not None
        alone = self._exchange is None
        if not self._apart:
            self.poll = self._poll_together
        else:
            self.poll = self._poll if limited or not alone else None
        self.flagged &= self._apart
        if alone and self._signal:
            self._stop_by(self._signal)
        self.meet()

    def meet(self, *, broke_off: bool = False) -> bool:
        if self.flagged:
            self._lookout.call()
        super().meet(broke_off=broke_off)
        self._lookout.next()
        self._looks = 0
        return self.broke_off

    def _note(self, number: int) -> None:
        # Called by a signal handler, in the middle of anything.
        self._signal, self.flagged = number, self._apart
        # Where ranks are still to be connected, they agree when they are.
        if self._alone:
            self._stop_by(number)

    def _poll(self) -> bool:
        """Whether to leave a pass of evaluation."""
        if not self.flagged and self._lookout.is_time():
            if self._is_over(time.monotonic() - self._started):
                self._signal, self.flagged = self._signal or OVERTIME, True
                if self._alone:
                    self._stop_by(self._signal)
            return self.flagged or self._lookout.hears()
        return self.flagged

    def _poll_together(self) -> bool:
        """The same where a forward pass is an exchange: all ranks leave after the same batch."""
        if not self._together():
            return False  # some have no batch any more, so that the pass is nearly over
        self._looks += 1
        self._look(self.state.iter + self._looks)
        return self.state.urgent
