import atexit
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stratrun.errors import ConfigError
from stratrun.loggers.abilities import ABILITIES, verb_of
from stratrun.loggers.base import Logger
from stratrun.loggers.queue import Call, CallQueue
from stratrun.loggers.record import Record
from stratrun.registry import LOGGERS

_LOG = logging.getLogger("stratrun.loggers")
_VALUES = {"log", "log_image", "log_text"}
# Of a record: what its numbers and their names take.
_RECORD = 1024


@LOGGERS.register_module("background")
class BackgroundLogger(Logger):
    """Calls another logger from a thread of its own, so that one that waits or fails keeps nobody waiting.

    Calls wait in a queue. Where that is full the oldest values are dropped. What fails is told once, as a
    warning of Python's logger ``stratrun.loggers``, and the next call is tried; how much was dropped or
    failed is told again at the end. `flush` and `close` wait until all is written, for `deadline` seconds; a
    logger that has written nothing at all since they last waited in vain is not waited for again.

    A process that was forked from this one, such as a worker of a loader, has no such thread, and what it
    logs goes nowhere.

    Args:
        logger: A `Logger`, or a name or a dict with `type` to make one.
        capacity: How many values may wait.
        deadline: Seconds to wait for all to be written at the end of a job, and when the logger is closed.
    """

    def __init__(self, logger: Any, *, capacity: int = 4096, deadline: float = 30.0) -> None:
        if type(capacity) is not int or capacity < 1:
            raise ConfigError(f"capacity={capacity!r} must be a whole number of values, 1 or more")
        if isinstance(deadline, bool) or not isinstance(deadline, int | float) or not deadline >= 0:
            raise ConfigError(f"deadline={deadline!r} must be a number of seconds, 0 or more")
        self.logger: Logger = LOGGERS.build(logger, where="logger")
        self.capacity = capacity
        self.deadline: float = float(deadline)
        self._queue = CallQueue(capacity)
        self._thread: threading.Thread | None = None
        self._process: int | None = None
        self._failed: Counter[str] = Counter()
        self._told = self._told_of_drops = 0
        self._patience, self._seen = self.deadline, 0
        for verb in ABILITIES:
            if verb_of(self.logger, verb) is not None:
                setattr(self, verb, partial(self._put, verb))

    @property
    def dropped(self) -> int:
        """How many values found no room."""
        return self._queue.dropped

    def open(self, folder: Path) -> None:
        self._put("open", folder)

    def log(self, record: Record) -> None:
        self._put("log", record)

    def say(self, text: str) -> None:
        if type(self.logger).say is not Logger.say:
            self._put("say", text)

    def log_config(self, text: str) -> None:
        self._put("log_config", text)

    def flush(self) -> None:
        self._put("flush")
        self._wait()

    def close(self) -> None:
        if self._thread is None or self._is_copy():
            return
        self._put("close")
        self._queue.end()
        if self._wait():
            self._thread.join()
            self._thread = None
        atexit.unregister(self.close)
        self._tell_at_end()

    def _put(self, verb: str, *args: Any) -> None:
        if self._is_copy():
            return
        call: Callable[..., None] = getattr(self.logger, verb)
        size = sum(map(_size, args))
        if self._queue.put(Call(verb, partial(call, *args), size, verb in _VALUES)):
            self._tell_of_drops()
        if not self._queue.served:
            self._begin()

    def _begin(self) -> None:
        self._process, self._queue.served = os.getpid(), True
        # A daemon, as one that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=f"stratrun-{self._name}", daemon=True)
        self._thread.start()
        # After what the logger's package has registered when it was imported: the last is called first.
        atexit.unregister(self.close)
        atexit.register(self.close)

    def _is_copy(self) -> bool:
        # Its lock may be held for ever, by a thread that was not copied.
        return self._process is not None and os.getpid() != self._process

    def _work(self) -> None:
        while (call := self._queue.take()) is not None:
            try:
                call.make()
            except (Exception, SystemExit) as error:
                self._note(call.verb, error)
            finally:
                self._queue.done()

    def _note(self, verb: str, error: BaseException) -> None:
        self._failed[verb] += 1
        if self._failed.total() == 1:
            # Only now, as it imports a YAML reader.
            from stratrun.config.redaction import hide_in_text

            told = hide_in_text(f"{type(error).__name__}: {error}")
            _LOG.warning("%s: its %s failed: %s; the run goes on", self._name, verb, told)

    def _wait(self) -> bool:
        if self._is_copy():
            return False
        if self._queue.finished != self._seen:
            self._patience = self.deadline
        done = self._queue.wait(self._patience)
        self._seen = self._queue.finished
        if not done:
            if self._patience > 0:
                left = ", ".join(f"{n} of {verb}" for verb, n in Counter(self._queue.waiting()).items())
                _LOG.warning(
                    "%s: after %g s there is still to be done: %s; the run goes on",
                    *(self._name, self.deadline, left),
                )
            self._patience = 0.0
        return done

    def _tell_of_drops(self) -> None:
        if not self._told_of_drops:
            self._told_of_drops = self.dropped
            _LOG.warning(
                "%s: %d values wait to be written, for more there is no room; the oldest are dropped",
                *(self._name, self.capacity),
            )

    def _tell_at_end(self) -> None:
        troubles = [f"{self.dropped} values were dropped"] if self.dropped else []
        troubles += [f"{n} calls of {verb} failed" for verb, n in self._failed.items()]
        count = self.dropped + self._failed.total()
        if count > self._told:
            self._told = count
            _LOG.warning("%s: %s", self._name, ", ".join(troubles))

    @property
    def _name(self) -> str:
        return type(self.logger).__name__


def _size(value: Any) -> int:
    if isinstance(value, Record):
        return _RECORD
    if isinstance(value, str):
        return len(value)
    width, height = getattr(value, "size", (0, 0)) if hasattr(value, "getbands") else (0, 0)
    return width * height * 4
