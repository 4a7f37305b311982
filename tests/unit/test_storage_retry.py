"""Which failures are tried again, after which pauses, and for how long."""

import errno
import socket

import pytest
from aiohttp import ClientPayloadError, ServerDisconnectedError
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from fsspec.exceptions import FSTimeoutError
from s3fs.errors import translate_boto_error

from stratrun.errors import ConfigError, StorageError
from stratrun.storage import Retry
from stratrun.storage.retry import Kind, ShortBody, SourceError, kind_of, kind_on_disk


def said(code, status=400):
    """What s3fs raises for an error that a server reports."""
    response = {"Error": {"Code": code, "Message": "text"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(response, "PutObject"))


class Answered(Exception):
    """As libraries of other stores report a status."""

    def __init__(self, code):
        super().__init__(f"status {code}")
        self.code = code


URL = "http://127.0.0.1:1/bucket"
FINAL, TRANSIENT, AWAY = Kind.FINAL, Kind.TRANSIENT, Kind.AWAY
REMOTE = [
    (said("AccessDenied", 403), FINAL),
    (said("403", 403), FINAL),
    (said("ExpiredToken"), FINAL),
    (said("InvalidAccessKeyId", 403), FINAL),
    (said("SignatureDoesNotMatch", 403), FINAL),
    (said("NoSuchBucket", 404), FINAL),
    (said("NoSuchKey", 404), FINAL),
    (said("EntityTooLarge"), FINAL),
    (said("KeyTooLongError"), FINAL),
    (said("NotImplemented", 501), FINAL),
    (said("SomethingNew"), FINAL),
    (said("SlowDown", 503), AWAY),
    (said("503", 503), AWAY),
    (said("ServiceUnavailable", 503), AWAY),
    (said("InternalError", 500), TRANSIENT),
    (said("500", 500), TRANSIENT),
    (said("SomethingNew", 500), TRANSIENT),
    (said("RequestTimeout"), TRANSIENT),
    (said("IncompleteBody"), TRANSIENT),
    (said("BadDigest"), TRANSIENT),
    (said("ConditionalRequestConflict", 409), TRANSIENT),
    (Answered(401), FINAL),
    (Answered(403), FINAL),
    (Answered(404), FINAL),
    (Answered(408), TRANSIENT),
    (Answered(429), AWAY),
    (Answered(500), TRANSIENT),
    (Answered(503), AWAY),
    (EndpointConnectionError(endpoint_url=URL), AWAY),
    (ConnectionClosedError(endpoint_url=URL), AWAY),
    (ReadTimeoutError(endpoint_url=URL), AWAY),
    (ServerDisconnectedError(), AWAY),
    (ResponseStreamingError(error="cut off"), TRANSIENT),
    (ClientPayloadError("cut off"), TRANSIENT),
    (NoCredentialsError(), FINAL),
    (FSTimeoutError(), AWAY),
    (TimeoutError(), AWAY),
    (ConnectionResetError(errno.ECONNRESET, "reset"), AWAY),
    (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), AWAY),
    (socket.gaierror(-3, "name resolution"), AWAY),
    (OSError(errno.ENETUNREACH, "no network"), AWAY),
    (OSError(errno.ETIMEDOUT, "late"), AWAY),
    (ShortBody("3 bytes"), TRANSIENT),
    (OSError(errno.EIO, "input/output"), TRANSIENT),
    (OSError(errno.ESTALE, "stale"), TRANSIENT),
    (InterruptedError(errno.EINTR, "interrupted"), TRANSIENT),
    (OSError(errno.ENOSPC, "full"), FINAL),
    (OSError(errno.EDQUOT, "quota"), FINAL),
    (OSError(errno.EROFS, "read-only"), FINAL),
    (PermissionError(errno.EACCES, "denied"), FINAL),
    (OSError(errno.ENAMETOOLONG, "long"), FINAL),
    (FileNotFoundError("gone"), FINAL),
    (FileExistsError("there"), FINAL),
    (ValueError("a mistake"), FINAL),
]


@pytest.mark.parametrize(("error", "kind"), REMOTE, ids=lambda value: repr(value)[:40])
def test_a_remote_failure_is_sorted_by_what_the_store_said(error, kind):
    assert kind_of(error) is kind


def test_what_lies_behind_an_error_decides_when_the_error_itself_says_nothing():
    wrapped = RuntimeError("something failed")
    wrapped.__cause__ = said("SlowDown", 503)
    assert kind_of(wrapped) is AWAY
    wrapped.__cause__.__cause__.__cause__ = wrapped  # a ring ends all the same
    assert kind_of(wrapped) is AWAY


@pytest.mark.parametrize("number", [errno.EINTR, errno.ESTALE, errno.ETIMEDOUT])
def test_on_disk_only_what_network_mounts_say_is_tried_again(number):
    assert kind_on_disk(OSError(number, "")) is TRANSIENT


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_on_disk_anything_else_is_final(number):
    assert kind_on_disk(OSError(number, "")) is FINAL


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self):
        self.now = 1000.0
        self.pauses = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


class Longest:
    """Draws the most that may be drawn."""

    def uniform(self, low, high):
        return high


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("stratrun.storage.retry.time", made)
    return made


@pytest.fixture
def longest(monkeypatch):
    monkeypatch.setattr("stratrun.storage.retry._random", Longest())


def report(error, tried):
    raise StorageError(f"gave up: {tried}") from error


def failing(error, times=10**9):
    """Work that fails so often and then succeeds; it notes how many seconds it was given."""
    given = []

    def work(seconds):
        given.append(seconds)
        if len(given) <= times:
            raise error
        return "done"

    return work, given


def test_pauses_double_up_to_the_cap(clock, longest):
    work, _ = failing(said("SlowDown", 503), 7)
    assert Retry(base=0.5, cap=8, deadline=1000).run(work, kind_of, report) == "done"
    assert clock.pauses == [0.5, 1, 2, 4, 8, 8, 8]


def test_pauses_are_spread_over_the_whole_range():
    pauses = [Retry(base=2).pause(3) for _ in range(300)]
    assert all(0 <= pause <= 8 for pause in pauses)
    assert min(pauses) < 1
    assert max(pauses) > 7


def test_pauses_leave_the_random_numbers_of_the_training_alone():
    import random

    before = random.getstate()
    Retry().pause(1)
    assert random.getstate() == before


def test_a_request_that_goes_wrong_is_tried_as_often_as_allowed(clock):
    work, given = failing(said("InternalError", 500))
    with pytest.raises(StorageError, match="gave up: 5 attempts") as caught:
        Retry().run(work, kind_of, report)
    assert len(given) == 5
    assert isinstance(caught.value.__cause__, OSError)


def test_a_final_failure_is_not_tried_again(clock):
    work, given = failing(said("AccessDenied", 403))
    with pytest.raises(StorageError, match=r"1 attempt, 0\.0 s"):
        Retry().run(work, kind_of, report)
    assert len(given) == 1
    assert clock.pauses == []


def test_a_store_that_is_away_is_waited_for_until_the_deadline(clock, longest):
    work, given = failing(ConnectionRefusedError())
    with pytest.raises(StorageError, match="gave up"):
        Retry(attempts=2, deadline=60).run(work, kind_of, report)
    assert len(given) > 5
    assert 30 < clock.now - 1000 <= 60
    work, given = failing(ConnectionRefusedError(), 6)
    assert Retry(attempts=2, deadline=60).run(work, kind_of, report) == "done"


def test_the_first_try_may_hang_for_a_quarter_of_the_time_and_a_later_one_for_the_rest(clock, longest):
    def hangs(seconds):
        given.append(seconds)
        clock.now += seconds
        raise TimeoutError

    given = []
    with pytest.raises(StorageError, match="2 attempts"):
        Retry(deadline=100).run(hangs, kind_of, report)
    assert given == [25, 74.5]
    assert clock.now - 1000 <= 100


def test_the_deadline_counts_from_when_something_went_forward_last(clock, longest):
    moved = [clock.now]

    def slow(seconds):
        clock.now += 90
        moved[0] = clock.now
        raise ConnectionResetError

    with pytest.raises(StorageError):
        Retry(attempts=2, deadline=100).run(slow, lambda _: TRANSIENT, report, since=lambda: moved[0])
    assert clock.now - 1000 > 180


def test_an_error_of_the_source_is_passed_on_as_it_is(clock):
    mistake = ValueError("a tensor was freed")
    work, given = failing(SourceError(mistake))
    with pytest.raises(ValueError, match="was freed") as caught:
        Retry().run(work, kind_of, report)
    assert caught.value is mistake
    assert len(given) == 1


@pytest.mark.parametrize("name", ["attempts", "base", "cap", "deadline"])
def test_a_retry_needs_room(name):
    with pytest.raises(ConfigError, match=f"{name}=0 of a retry"):
        Retry(**{name: 0})
