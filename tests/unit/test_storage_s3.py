"""Every operation against an S3 server whose requests fail, hang, are cut short or are denied."""

import os
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from stratrun.errors import ConfigError, StorageError
from stratrun.storage import Folder, Retry
from tests.stores import BUCKET, KINDS

QUICK = Retry(base=0.01, cap=0.05)
PART = 16 * 2**20


def folder_in(s3, retry=QUICK, **more):
    return Folder(s3.url, retry, **s3.options, **more)


def large(size=2 * PART + 12345):
    return (os.urandom(4096) * (size // 4096 + 1))[:size]


def every_operation(folder):
    """Do all there is to do in a folder, checking what comes of it."""
    folder.make()
    assert folder.names() == []
    folder.write_bytes("a", b"12345")
    folder.write_bytes("lock", b"mine", exclusive=True)
    with pytest.raises(FileExistsError):
        folder.write_bytes("lock", b"theirs", exclusive=True)
    folder.write_blocks("sub/blocks", lambda: [memoryview(b"abc"), memoryview(b"defg")])
    with folder.open("stream", "wb") as stream:
        stream.write(b"0123")
    assert folder.names() == ["a", "lock", "stream", "sub"]
    assert folder.sizes() == {"a": 5, "lock": 4, "stream": 4}
    assert folder.read_bytes("a") == b"12345"
    with folder.open("stream") as stream:
        assert (stream.read(1), stream.read()) == (b"0", b"123")
    into = bytearray(4)
    folder.read_into("sub/blocks", 2, memoryview(into))
    assert into == b"cdef"
    with pytest.raises(EOFError, match="has 7 bytes"):
        folder.read_into("sub/blocks", 4, memoryview(into))
    assert folder.exists("a")
    assert folder.exists("sub")
    assert not folder.exists("b")
    assert folder.child("a").is_file()
    assert not folder.child("sub").is_file()
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("b")
    folder.probe("token")
    for name in ("a", "lock", "stream", "sub", "never there"):
        folder.remove(name)
    assert folder.names() == []


@pytest.mark.parametrize("place", ["s3", "memory", "local"])
def test_every_operation_does_the_same_everywhere(s3, tmp_path, place):
    places = {"s3": folder_in(s3), "memory": Folder(f"memory://{tmp_path.name}"), "local": Folder(tmp_path)}
    every_operation(places[place])


@pytest.mark.parametrize("seed", range(4))
def test_every_operation_succeeds_while_a_fifth_of_the_requests_fail(s3, seed):
    with s3.faults(rate=0.2, seed=seed, kinds=KINDS):
        every_operation(folder_in(s3))
        fates = [fate for *_, fate in s3.log()]
    assert len(fates) - fates.count("done") > 5
    assert s3.files() == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_succeeds_when_the_first_of_each_request_fails(s3, kind):
    with s3.faults(first=kind):
        every_operation(folder_in(s3))
    assert s3.files() == []


def test_a_large_file_goes_in_parts_of_which_only_the_failed_are_sent_again(s3):
    data = large()
    made = []

    def blocks():
        made.append(1)
        yield from (memoryview(data)[at : at + 2**23] for at in range(0, len(data), 2**23))

    with s3.faults(rate=0.2, seed=1, kinds=KINDS, path="/large"):
        folder_in(s3, Retry(attempts=10, base=0.01, cap=0.05)).write_blocks("large", blocks)
        log = s3.log()
    assert made == [1]
    assert {fate for *_, fate in log} > {"done"}
    assert all("?" in path for method, path, _ in log if method == "PUT")
    into = bytearray(len(data))
    with s3.faults(rate=0.3, seed=2):
        folder_in(s3).read_into("large", 0, memoryview(into))
    assert into == data
    assert s3.pending_uploads() == 0


@pytest.mark.parametrize("number", [1, 2], ids=["start", "completion"])
def test_a_large_file_whose_answer_was_lost_is_there(s3, number):
    data = large()
    with s3.faults(script={number: "lost"}, methods=("POST",), path="/large"):
        folder_in(s3).write_blocks("large", lambda: [memoryview(data)])
        assert [method for method, _, fate in s3.log() if fate == "lost"] == ["POST"]
    assert folder_in(s3).sizes() == {"large": len(data)}


def test_a_large_file_that_fails_is_neither_seen_nor_left_in_parts(s3):
    data = memoryview(large())
    with s3.faults(script={2: "403"}, path="/large"), pytest.raises(StorageError, match="Access Denied"):
        folder_in(s3).write_blocks("large", lambda: [data])

    def blocks():
        yield data
        raise ZeroDivisionError("the source")

    with pytest.raises(ZeroDivisionError, match="the source"):
        folder_in(s3).write_blocks("large", blocks)
    with pytest.raises(ZeroDivisionError), folder_in(s3).open("large", "wb") as stream:
        stream.write(data)
        raise ZeroDivisionError
    assert s3.files() == []
    assert s3.pending_uploads() == 0


@pytest.mark.parametrize(
    "options", [{"nokey": 1}, {"config_kwargs": {"nokey": 1}}, {"client_kwargs": {"nokey": 1}}]
)
def test_an_option_that_the_file_system_does_not_take_is_named(s3, options):
    given = {**s3.options, **options}
    if "client_kwargs" in options:
        given["client_kwargs"] = {**s3.options["client_kwargs"], "nokey": 1}
    with pytest.raises(
        ConfigError, match=r"storage_options have 'nokey', which the file .*checkpoint_cfg=dict\(stor"
    ):
        Folder(f"{s3.url}/run", **given).probe("token")


def test_a_lock_whose_answer_was_lost_is_ours_but_one_that_others_took_is_not(s3):
    with s3.faults(first="lost", methods=("PUT",)):
        folder_in(s3).write_bytes("lock", b"mine", exclusive=True)
    with pytest.raises(FileExistsError):
        folder_in(s3).write_bytes("lock", b"theirs", exclusive=True)
    with s3.faults(first="reset", methods=("PUT",)), pytest.raises(FileExistsError):
        folder_in(s3).write_bytes("lock", b"theirs", exclusive=True)
    assert folder_in(s3).read_bytes("lock") == b"mine"


def test_of_many_who_create_a_file_at_once_one_succeeds(s3):
    def claim(number):
        try:
            folder_in(s3).write_bytes("lock", b"%d" % number, exclusive=True)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(6) as pool:
        winners = [number for number in pool.map(claim, range(6)) if number is not None]
    assert [b"%d" % number for number in winners] == [folder_in(s3).read_bytes("lock")]


OPERATIONS = {
    "writing": lambda folder: folder.write_bytes("a", b"1"),
    "creating": lambda folder: folder.write_bytes("a", b"1", exclusive=True),
    "writing blocks": lambda folder: folder.write_blocks("a", lambda: [memoryview(b"1")]),
    "writing parts": lambda folder: folder.write_blocks("a", lambda: [memoryview(bytes(PART + 1))]),
    "reading": lambda folder: folder.read_into("there", 0, memoryview(bytearray(1))),
    "looking up": lambda folder: folder.exists("there"),
    "listing": lambda folder: folder.names(),
    "removing": lambda folder: folder.remove("there"),
    "probing": lambda folder: folder.probe("token"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_denied_is_an_error_at_once_that_names_operation_and_place(s3, name):
    folder_in(s3).write_bytes("there", b"1")
    with s3.faults(deny_from=1):
        start = time.monotonic()
        with pytest.raises(StorageError, match=rf"^\w+.* {s3.url}.* failed: .*1 attempt") as caught:
            OPERATIONS[name](Folder(s3.url, **s3.options))
        assert time.monotonic() - start < 5
        assert len(s3.log()) == 1
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_bucket_that_is_not_there_is_named_and_never_made(s3, name):
    with pytest.raises(
        StorageError, match=r"s3://no-such-bucket/.* failed: there is no such bucket .1 attempt"
    ):
        OPERATIONS[name](Folder("s3://no-such-bucket/run", **s3.options))
    assert all(
        "no-such-bucket" not in path or method != "PUT" or path.count("/") > 1 for method, path, _ in s3.log()
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_store_that_is_away_for_a_moment_is_waited_for(s3, name):
    folder_in(s3).write_bytes("there", b"1")
    with s3.faults(away_from=1, away_for=0.4):
        OPERATIONS[name](folder_in(s3, Retry(attempts=1, base=0.05, cap=0.1)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_store_that_stays_away_is_an_error_at_the_deadline(s3, name):
    folder_in(s3).write_bytes("there", b"1")
    with s3.faults(away_from=1):
        start = time.monotonic()
        with pytest.raises(StorageError, match=r"failed: .*attempts, \d\.\d s"):
            OPERATIONS[name](folder_in(s3, Retry(base=0.05, cap=0.1, deadline=0.6)))
        assert 0.3 < time.monotonic() - start < 5


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_request_that_is_never_answered_ends_at_the_deadline(s3, name):
    folder_in(s3).write_bytes("there", b"1")
    with s3.faults(hang_from=1):
        start = time.monotonic()
        with pytest.raises(StorageError, match=r"[23] attempts"):
            OPERATIONS[name](folder_in(s3, Retry(base=0.01, deadline=0.8)))
        assert 0.5 < time.monotonic() - start < 8


def test_nothing_listens_at_the_address(s3):
    options = {
        **s3.options,
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:9", "region_name": "us-east-1"},
    }
    with pytest.raises(StorageError, match="Could not connect"):
        Folder(s3.url, Retry(base=0.01, cap=0.5, deadline=4), **options).names()


def test_what_is_cut_short_for_good_is_an_error(s3):
    folder_in(s3).write_bytes("a", b"12345")
    with s3.faults(rate=1, kinds=("truncate",), methods=("GET",), path="/a"):
        with pytest.raises(StorageError, match=r"reading .*5 attempts"):
            folder_in(s3).read_bytes("a")
        assert [fate for *_, fate in s3.log() if fate != "done"] == ["truncate"] * 5


def test_what_others_write_and_remove_is_seen_at_once(s3):
    ours, theirs = folder_in(s3), folder_in(s3, max_concurrency=3)
    assert ours._fs is not theirs._fs
    for step in range(3):
        theirs.write_bytes(f"step-{step}/a", b"x" * step)
        assert ours.names() == [f"step-{step}"]
        assert ours.child(f"step-{step}").sizes() == {"a": step}
        assert ours.exists(f"step-{step}/a")
        theirs.remove(f"step-{step}")
        assert ours.names() == []
        assert ours.sizes() == {}
        assert not ours.exists(f"step-{step}/a")
        assert not ours.exists(f"step-{step}")


@pytest.mark.parametrize("place", ["s3", "memory", "local"])
def test_many_threads_read_one_file(s3, place, tmp_path):
    folder = {"s3": folder_in(s3), "memory": Folder(f"memory://{tmp_path.name}"), "local": Folder(tmp_path)}[
        place
    ]
    data = os.urandom(2**16)
    folder.write_bytes("a", data)

    def read(start):
        into = bytearray(2048)
        folder.read_into("a", start, memoryview(into))
        return into == data[start : start + 2048]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(0, 2**16, 2048)))


CANARIES = (
    "canary-access-key",
    "canary-secret-key",
    "c4nary-user",
    "c4nary-word",
    "c4nary-env",
    "c4nary-token",
)


@pytest.mark.parametrize("fault", ["deny_from", "away_from", "hang_from"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_credentials_are_in_no_message(s3, monkeypatch, caplog, name, fault):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "c4nary-env")
    endpoint = s3.options["client_kwargs"]["endpoint_url"].replace("//", "//c4nary-user:c4nary-word@")
    options = {
        **s3.options,
        "token": "c4nary-token",
        "client_kwargs": {"endpoint_url": endpoint, "region_name": "x"},
    }
    with s3.faults(**{fault: 1}), pytest.raises(StorageError) as caught:
        OPERATIONS[name](
            Folder(f"s3://c4nary-user:c4nary-word@{BUCKET}/run", Retry(base=0.01, deadline=0.1), **options)
        )
    shown = "".join(traceback.format_exception(caught.value, chain=True)) + repr(caught.value) + caplog.text
    source = [line for line in shown.splitlines() if not line.startswith(("  File", "    "))]
    assert not [line for line in source for canary in CANARIES if canary in line]


def test_credentials_in_what_a_store_says_itself_are_hidden(s3, monkeypatch):
    folder = Folder(
        "memory://run", key="c4nary-token", client_kwargs={"endpoint_url": "http://u:c4nary-word@h"}
    )
    monkeypatch.setenv("MY_SERVICE_TOKEN", "c4nary-env")

    def tell(*args, **kwargs):
        try:
            raise RuntimeError("the key c4nary-token is unknown")
        except RuntimeError as error:
            raise OSError("denied: c4nary-token c4nary-word c4nary-env http://u:pw@h/x?sig=abc") from error

    monkeypatch.setattr(type(folder._fs), "ls", tell)
    with pytest.raises(StorageError) as caught:
        folder.names()
    shown = "".join(traceback.format_exception(caught.value))
    messages = [line for line in shown.splitlines() if not line.startswith("  ")]
    assert not [line for line in messages if "c4nary" in line or "pw@" in line or "abc" in line]
    assert "denied: *** *** *** http://***@h/x?***" in str(caught.value)
