"""What changes the course of a run: asked for by any rank, acted on by all at the same iteration."""

import math
import signal as signals
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stratrun.control.exchange import WISHES, Exchange
from stratrun.control.settings import ControlSettings
from stratrun.control.signals import SignalTrap
from stratrun.distributed import Collectives
from stratrun.errors import ConfigError, nearest
from stratrun.state import TrainState

# Seconds between two exchanges: each takes some tenths of a millisecond of the processor.
EVERY = 0.005
# Not more steps than this from one to the next, as the next ones may take longer.
MOST_STEPS = 32
# Seconds between two looks, within a pass of evaluation, at whether others have left theirs.
LOOK = 0.5


class Control:
    """Requests of one rank, brought to all.

    In one process a request is agreed upon as soon as it is made. Between ranks it travels with a sum that
    is begun after an iteration and taken at a later one, the same on every rank; and with one that is
    waited for where they come together anyway, at the ends of epochs and of evaluations.
    """

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.flagged = False
        """Whether this process is to leave a pass of evaluation: a signal has come, or its time is over."""
        self.poll: Callable[[], bool] | None = None
        """Asked within a pass of evaluation whether to leave it. None where `flagged` says it all."""
        self.broke_off = False
        """Whether the last pass over data was broken off, by whichever rank."""
        self.lacks: dict[str, str] = {}
        """Wishes that this run cannot fulfil, and why not."""
        self._settings = ControlSettings()
        self._exchange: Exchange | None = None
        self._settle: Callable[[], None] = lambda: None
        self._apart = True
        self._job = ""
        self._signal = 0
        self._wishes: dict[str, str] = {}
        self._sent: dict[str, Any] = {}
        self._seconds = 0.0
        self._started = self._looked = time.monotonic()
        self._next = self._last = 0
        self._gap = 1
        self._alone = False
        self._meetings = 0
        self._next_look = 0.0

    # -- what loops and hooks ask

    def request(self, what: str, reason: str = "", *, agreed: bool = False) -> None:
        """Ask all ranks to ``"stop"``, to ``"save"`` or to ``"validate"`` after an iteration.

        Args:
            reason: For the user.
            agreed: Every rank asks for this at the same point: it takes effect there, at once.

        Raises:
            ConfigError: there is no such request, or nothing in this run that would serve it.
        """
        if what not in WISHES:
            raise ConfigError(f"request({what!r}): there is no such request; {nearest(str(what), WISHES)}")
        if what in self.lacks:
            raise ConfigError(f"request({what!r}): {self.lacks[what]}")
        if self._exchange is None or agreed:
            self._act(what, reason)
        else:
            self._wishes.setdefault(what, reason)

    @property
    def seconds(self) -> float:
        """Since the job began: of several ranks the mean of their clocks as of the last exchange."""
        return time.monotonic() - self._started if self._exchange is None else self._seconds

    def meet(self, *, broke_off: bool = False) -> bool:
        """Come together and agree on all that was asked for. Every rank calls it at the same point.

        Returns whether any of them has broken off its pass.
        """
        exchange = self._exchange
        if exchange is None:
            self.broke_off = broke_off
            return broke_off
        if self.flagged:
            exchange.ranks.board.leave_word(self._label, "")
        self._settle()
        if exchange.under_way:
            self._take(exchange)
        self._begin(exchange, self.state.iter, broke_off=broke_off)
        self.broke_off = self._take(exchange)
        self._next = self.state.iter + 1
        self._meetings += 1
        return self.broke_off

    # -- what the runner does with it

    def connect(
        self, ranks: Collectives, settings: ControlSettings, *, settle: Callable[[], None], apart: bool
    ) -> list[Callable[[int], None]]:
        """Take part in a run. Returns what is to be called after each iteration.

        Args:
            ranks: Exchanges that nobody else makes.
            settle: Called before the ranks come together.
            apart: Whether ranks may leave a pass of evaluation each at a batch of its own.
        """
        self._settings, self._alone = settings, ranks.world_size == 1
        self._apart = apart or self._alone
        if ranks.world_size > 1:
            self._exchange, self._settle = Exchange(ranks), settle
            self.state.ask = self.request
            return [self._look]
        return [] if settings.time_limit is None else [lambda _: self._watch_time()]

    @contextmanager
    def job(self, name: str, settings: ControlSettings, *, launched: bool) -> Iterator[str]:
        """Take signals for as long as a job is made ready and done. Gives why not, if that cannot be."""
        outer = self._job
        if not outer:
            self.state.begin_job()
            self._settings, self._job = settings, name
            self.flagged, self._signal = False, 0
            self._wishes.clear()
            self._seconds, self._started = 0.0, time.monotonic()
        trap = SignalTrap(() if outer else settings.numbers, self._note, launched=launched)
        try:
            yield trap.set()
        except BaseException:
            if self._exchange is not None and not outer:
                self._exchange.abandon()
            raise
        finally:
            trap.release()
            self._job = outer

    def start(self) -> None:
        """Agree on what came while the job was made ready."""
        self._looked, self._last = time.monotonic(), self.state.iter
        limited = self._job == "train" and self._settings.time_limit is not None
        alone = self._exchange is None
        self.poll = self._poll if self._apart and (limited or not alone) else None
        self._next_look = time.monotonic() + LOOK
        self.flagged &= self._apart
        if alone and self._signal:
            self._stop_at_once(self._signal)
        self.meet()

    @property
    def signal(self) -> int:
        """The signal that was agreed to end the job, 0 for none."""
        return self.state.stop_signal

    def _note(self, number: int) -> None:
        # Called by a signal handler, in the middle of anything.
        self._signal, self.flagged = number, self._apart
        # Where ranks are still to be connected, they agree when they are.
        if self._alone:
            self._stop_at_once(number)

    def _stop_at_once(self, number: int) -> None:
        self.state.stop_signal = self.state.stop_signal or number
        self.state.urgent = True
        self._act("stop", signals.Signals(number).name)

    def _act(self, what: str, reason: str) -> None:
        state = self.state
        if what == "stop":
            state.stop_reason = state.stop_reason or reason
            state.stopping = True
        elif what == "save":
            state.save_due = True
        else:
            state.validate_due = True

    # -- between ranks

    def _look(self, iteration: int) -> None:
        if iteration < self._next:
            return
        exchange = self._exchange
        assert exchange is not None
        if exchange.under_way:
            self._take(exchange)
        self._begin(exchange, iteration)
        # All have the same mean, and so the same next iteration.
        self._next = iteration + self._gap

    def _begin(self, exchange: Exchange, iteration: int, *, broke_off: bool = False) -> None:
        now = time.monotonic()
        steps = iteration - self._last
        step_seconds = (now - self._looked) / steps if steps > 0 else 0.0
        if steps > 0:
            self._looked, self._last = now, iteration
        self._sent, self._wishes = {"wishes": self._wishes, "signal": self._signal}, {}
        wishes = bool(self._sent["wishes"]) or (self._signal > 0 and not self.state.stop_signal)
        exchange.begin(
            wishes=wishes, broke_off=broke_off, seconds=now - self._started, step_seconds=step_seconds
        )

    def _take(self, exchange: Exchange) -> bool:
        heard = exchange.take()
        self._seconds = heard.seconds
        if heard.step_seconds > 0:
            self._gap = max(1, min(MOST_STEPS, math.ceil(EVERY / heard.step_seconds)))
        if heard.wished:
            self._agree(exchange.ranks.gather(self._sent))
        self._limit(heard.seconds)
        return heard.broke_off

    def _agree(self, sent: list[dict[str, Any]]) -> None:
        for rank, one in enumerate(sent):
            if one["signal"] and not self.state.stop_signal:
                self.state.stop_signal = one["signal"]
                self.state.urgent = True
                self._act("stop", f"{signals.Signals(one['signal']).name} on rank {rank}")
            for what, reason in one["wishes"].items():
                self._act(what, reason)

    def _limit(self, seconds: float) -> None:
        limit = self._settings.time_limit
        if limit is not None and seconds >= limit and self._job == "train" and not self.state.urgent:
            self.state.urgent = True
            self._act("stop", f"the time limit of {limit:g} s")

    def _watch_time(self) -> None:
        """What a lone process, whose clock decides, does about its time limit."""
        self._limit(time.monotonic() - self._started)
        self.flagged |= self.state.urgent

    @property
    def _label(self) -> str:
        return f"stop/{self._meetings}"

    def _poll(self) -> bool:
        """Whether to leave a pass of evaluation. By the clock, as ranks have batches of their own."""
        if self.flagged:
            return True
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK
        if self._exchange is None:
            self._watch_time()
            return self.flagged
        limit = self._settings.time_limit
        if limit is not None and self._job == "train" and now - self._started >= limit:
            self._exchange.ranks.board.leave_word(self._label, "")
        return self._exchange.ranks.board.word(self._label) is not None
