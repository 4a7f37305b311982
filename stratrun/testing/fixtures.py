"""Ranks as fixtures of pytest: ``pytest_plugins = ["stratrun.testing.fixtures"]`` in the top conftest.py.

With it the server of ranks is forked before the first test, while the process has no threads yet. The checks
need no fixture; a test that calls one asks for `ready_ranks` to have that.
"""

import pytest

from stratrun.testing.ranks import SERVER, Ranks, shared_ranks

_STARTED = pytest.StashKey[bool]()


def pytest_collection_finish(session: pytest.Session) -> None:
    names = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if any(name.endswith("_ranks") for name in names) and not session.config.option.collectonly:
        session.config.stash[_STARTED] = True
        SERVER.start()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _STARTED in config.stash:
        SERVER.stop()


@pytest.fixture(scope="session")
def two_ranks() -> Ranks:
    """Two gloo ranks: `two_ranks(function, **kwargs)` returns the result of each rank."""
    return shared_ranks(2)


@pytest.fixture(scope="session")
def four_ranks() -> Ranks:
    """Four gloo ranks: `four_ranks(function, **kwargs)` returns the result of each rank."""
    return shared_ranks(4)


@pytest.fixture(scope="session")
def ready_ranks() -> None:
    """Ranks can be forked at once."""
