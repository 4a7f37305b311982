"""Fixtures for all tests: ranks that stay up, and the proof that a test leaves nothing behind."""

from collections.abc import Iterator

import pytest

from tests.leaks import Snapshot
from tests.rank_server import RankServer
from tests.ranks import Ranks
from tests.stores import Server, Store

_SERVER = pytest.StashKey[RankServer]()
_RANK_FIXTURES = {"two_ranks", "four_ranks", "bare_ranks"}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the ranks' server now, before a test can start threads, if any test will use it."""
    server = session.config.stash.setdefault(_SERVER, RankServer())
    wanted = any(_RANK_FIXTURES & set(getattr(item, "fixturenames", ())) for item in session.items)
    if wanted and not session.config.option.collectonly:
        server.start()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _SERVER in config.stash:
        config.stash[_SERVER].stop()


def _ranks(request: pytest.FixtureRequest, world_size: int, joined: bool = True) -> Iterator[Ranks]:
    ranks = Ranks(request.config.stash[_SERVER], world_size, joined)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="session")
def two_ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Two gloo ranks: `two_ranks(function, **kwargs)` returns the result of each rank."""
    yield from _ranks(request, 2)


@pytest.fixture(scope="session")
def four_ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Four gloo ranks: `four_ranks(function, **kwargs)` returns the result of each rank."""
    yield from _ranks(request, 4)


@pytest.fixture
def bare_ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Two ranks with the variables of torchrun but without a process group, fresh for each test."""
    yield from _ranks(request, 2, joined=False)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: Server) -> Store:
    """An empty bucket of an S3 server that fails on request; `url` and `options` open it."""
    store = s3_server.store()
    store.reset()
    return store


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    before = Snapshot.take()
    yield
    changes = before.changes()
    before.restore()
    if changes:
        pytest.fail("the test left the process changed:\n  " + "\n  ".join(changes), pytrace=False)
