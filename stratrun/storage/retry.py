"""What follows when a store fails: another try after a pause, or an error that says what happened."""

import errno
import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn, TypeVar

from stratrun.errors import ConfigError, StratrunError

T = TypeVar("T")

# Not the generator that training draws from, and not the same numbers in ranks that were forked.
_random = random.SystemRandom()

# What says where a file is not, rather than that the store has failed.
ANSWERS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, EOFError)


class Kind(Enum):
    """What a failure says about another try."""

    FINAL = "the same would happen again"
    TRANSIENT = "this request went wrong"
    AWAY = "the store is not there at all now, or asks for fewer requests"


class SourceError(Exception):
    """What was to be written could not be made: `error` is not the store's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class ShortBody(ConnectionError):
    """Fewer bytes came than the store had promised."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to insist.

    A request that goes wrong is tried `attempts` times. While the store as a whole does not answer, or asks
    for fewer requests, only the deadline counts. Pauses are random, between nothing and a bound that
    starts at `base` and doubles up to `cap` seconds, so that many ranks do not return at once.
    """

    attempts: int = 5
    base: float = 0.5
    cap: float = 20.0
    deadline: float = 120.0
    """Seconds for one operation. A file written in blocks has them for each part that is sent."""

    def __post_init__(self) -> None:
        for name in ("attempts", "base", "cap", "deadline"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} of a retry must be more than 0")

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return _random.uniform(0, min(self.cap, self.base * 2.0 ** min(failures - 1, 60)))

    def run(
        self,
        work: Callable[[float], T],
        kind: Callable[[BaseException], Kind],
        report: Callable[[Exception, str], NoReturn],
        waits: Callable[[Exception, int, float], None] = lambda *_: None,
        since: Callable[[], float] | None = None,
    ) -> T:
        """The result of `work`, called until it succeeds, fails for good or time is up.

        `work` is told how many seconds it may take. `report` raises what is to be raised, given the last
        error and how much was tried. `waits` is told of each pause: why, after how many tries, how long.
        `since`: when something last went forward, if not at the start.
        """
        start = time.monotonic()
        for attempt in itertools.count(1):
            # The first try may hang for a quarter of the time only: what hangs once often works anew.
            left = self.deadline - (time.monotonic() - (since() if since else start))
            try:
                return work(self.deadline / 4 if attempt == 1 else left)
            except StratrunError:
                raise
            except SourceError as source:
                raise source.error from source.error.__cause__
            except Exception as error:
                now, pause, what = time.monotonic(), self.pause(attempt), kind(error)
                late = now - (since() if since else start) + pause >= self.deadline
                worn = what is Kind.TRANSIENT and attempt >= self.attempts
                if what is Kind.FINAL or worn or late:
                    report(error, f"{attempt} attempt{'s' * (attempt > 1)}, {now - start:.1f} s")
                waits(error, attempt, pause)
            time.sleep(pause)
        raise AssertionError("unreachable")


_AWAY_CODES = {"SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
_TRANSIENT_CODES = {
    *("InternalError", "RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),
    *("OperationAborted", "ConditionalRequestConflict"),
}
_AWAY_STATUS = {429, 502, 503, 504}
_TRANSIENT_STATUS = {408, 409, 425}
_AWAY_ERRNO = {
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN, errno.ETIMEDOUT),
    *(errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET),
}
_TRANSIENT_ERRNO = {errno.EINTR, errno.ESTALE, errno.EIO, errno.EAGAIN, errno.EBUSY}
_TRANSIENT_ON_DISK = {errno.EINTR, errno.ESTALE, errno.ETIMEDOUT}
# By name, as the libraries they are from need not be installed.
_TRANSIENT_CLASSES = {
    *("ClientPayloadError", "IncompleteRead", "IncompleteReadError", "ResponseStreamingError"),
    *("ResponseParserError", "FlexibleChecksumError"),
}
_AWAY_CLASSES = {
    *(
        "ConnectionError",
        "HTTPClientError",
        "ClientConnectionError",
        "ProtocolError",
        "TransportError",
        "gaierror",
    ),
    *("ServiceRequestError", "ServiceResponseError"),
}


def from_source(blocks: Iterable[memoryview]) -> Iterator[memoryview]:
    """The blocks; an error in making them is told from one of the store."""
    try:
        yield from blocks
    except Exception as error:
        raise SourceError(error) from error


def kind_on_disk(error: BaseException) -> Kind:
    """For local folders: what a disk says is final, but for what network mounts say now and then."""
    transient = isinstance(error, OSError) and error.errno in _TRANSIENT_ON_DISK
    return Kind.TRANSIENT if transient else Kind.FINAL


def kind_of(error: BaseException) -> Kind:
    """For remote stores: broken answers, then what the server said, then what the library made of it."""
    links = list(chain(error))
    for judge in (_by_name, _by_answer, _by_class):
        for link in links:
            if (kind := judge(link)) is not None:
                return kind
    return Kind.FINAL


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def answer(error: BaseException) -> tuple[str, int]:
    """The code and the HTTP status that the server gave; '' and 0 where there is none."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return code, int(code) if code.isdecimal() else status
    for name in ("status", "status_code", "code"):
        status = getattr(error, name, None)
        if isinstance(status, int) and 100 <= status <= 599:
            return "", status
    return "", 0


def _by_answer(error: BaseException) -> Kind | None:
    code, status = answer(error)
    if code in _AWAY_CODES or "reduce your request rate" in str(error) or status in _AWAY_STATUS:
        return Kind.AWAY
    if code in _TRANSIENT_CODES or status in _TRANSIENT_STATUS:
        return Kind.TRANSIENT
    if status >= 400:
        return Kind.TRANSIENT if status >= 500 and status != 501 else Kind.FINAL
    return None


def _by_name(error: BaseException) -> Kind | None:
    broken = isinstance(error, ShortBody) or not _TRANSIENT_CLASSES.isdisjoint(_names(error))
    return Kind.TRANSIENT if broken else None


def _by_class(error: BaseException) -> Kind | None:
    if isinstance(error, (*ANSWERS, PermissionError)):
        return Kind.FINAL
    if isinstance(error, ConnectionError | TimeoutError) or not _AWAY_CLASSES.isdisjoint(_names(error)):
        return Kind.AWAY
    number = error.errno if isinstance(error, OSError) else None
    if number in _AWAY_ERRNO:
        return Kind.AWAY
    if number in _TRANSIENT_ERRNO:
        return Kind.TRANSIENT
    return Kind.FINAL if number is not None else None


def _names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}
