"""What is asked for by any rank, agreed upon by all at the same iteration."""

import signal as signals
import time
from collections.abc import Callable
from typing import Any

from stratrun.control.exchange import WISHES, Exchange
from stratrun.control.settings import ControlSettings
from stratrun.errors import ConfigError, nearest
from stratrun.state import TrainState

# In place of a signal: the time of this rank is over.
OVERTIME = -1


class Agreement:
    """Requests of one rank, brought to all.

    In one process a request is agreed upon as soon as it is made. Between ranks it travels with a sum that
    is begun after an iteration and taken at a later one, the same on every rank; and with one that is
    waited for where they come together anyway, at the ends of epochs and of evaluations.
    """

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.broke_off: bool = False
        """Whether the last pass over data was broken off, by whichever rank."""
        self.lacks: dict[str, str] = {}
        """Wishes that this run cannot fulfil, and why not."""
        self.doing: str = ""
        """The job under way: the outer one, where another is done within it."""
        self._settings = ControlSettings()
        self._exchange: Exchange | None = None
        self._settle: Callable[[], None] = lambda: None
        self._signal = 0
        self._wishes: dict[str, str] = {}
        self._sent: dict[str, Any] = {}
        self._seconds = 0.0
        self._started = time.monotonic()
        self._next = 0

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
            self.state.agree(what, reason)
        else:
            self._wishes.setdefault(what, reason)

    @property
    def seconds(self) -> float:
        """Since the job began: of several ranks the mean of their clocks as of the last exchange."""
        return time.monotonic() - self._started if self._exchange is None else self._seconds

    def meet(self, *, broke_off: bool = False) -> bool:
        """Agree on all that was asked for, every rank at the same point. Returns whether any broke off."""
        exchange = self._exchange
        if exchange is None:
            self.broke_off = broke_off
            return broke_off
        self._settle()
        if exchange.under_way:
            self._take(exchange)
        self._begin(exchange, self.state.iter, broke_off=broke_off)
        self.broke_off = self._take(exchange)
        # What comes next may take another time for each step.
        exchange.start(self.state.iter, time.monotonic())
        self._next = self.state.iter + 1
        return self.broke_off

    def _look(self, iteration: int) -> None:
        if iteration < self._next:
            return
        exchange = self._exchange
        assert exchange is not None
        if exchange.under_way:
            self._take(exchange)
        self._begin(exchange, iteration)
        # All have the same mean, and so the same next iteration.
        self._next = iteration + exchange.gap

    def _begin(self, exchange: Exchange, iteration: int, *, broke_off: bool = False) -> None:
        now = time.monotonic()
        self._sent, self._wishes = {"wishes": self._wishes, "signal": self._signal}, {}
        wishes = bool(self._sent["wishes"]) or self._is_news(self._sent["signal"])
        exchange.begin(iteration, now, wishes=wishes, broke_off=broke_off, seconds=now - self._started)

    def _take(self, exchange: Exchange) -> bool:
        heard = exchange.take()
        self._seconds = heard.seconds
        if heard.wished:
            for rank, one in enumerate(exchange.ranks.gather(self._sent)):
                if self._is_news(one["signal"]):
                    self._stop_by(one["signal"], f" on rank {rank}")
                for what, reason in one["wishes"].items():
                    self.state.agree(what, reason)
        self._watch_time(heard.seconds)
        return heard.broke_off

    def _is_news(self, number: int) -> bool:
        return not self.state.urgent if number == OVERTIME else number > 0 and not self.state.stop_signal

    def _stop_by(self, number: int, where: str = "") -> None:
        if number == OVERTIME:
            self.state.agree("stop", f"the time limit of {self._settings.time_limit:g} s", urgent=True)
            return
        self.state.stop_signal = self.state.stop_signal or number
        self.state.agree("stop", f"{signals.Signals(number).name}{where}", urgent=True)

    def _watch_time(self, seconds: float | None = None) -> None:
        """Stop when the time is over: by the clock of this process, or one that all have alike."""
        if self._is_over(self.seconds if seconds is None else seconds) and self._is_news(OVERTIME):
            self._stop_by(OVERTIME)

    def _is_over(self, seconds: float) -> bool:
        limit = self._settings.time_limit
        return limit is not None and seconds >= limit and self.doing == "train"
