"""Fixtures for all tests: ranks that stay up, and the proof that a test leaves nothing behind."""

import os
from collections.abc import Iterator

import pytest

from stratrun.testing import Ranks
from stratrun.testing.fixtures import (
    four_ranks,
    pytest_collection_finish,
    pytest_unconfigure,
    ready_ranks,
    two_ranks,
)
from tests.leaks import Snapshot
from tests.stores import Server, Store
from tests.warm import Warm

__all__ = ["four_ranks", "pytest_collection_finish", "pytest_unconfigure", "ready_ranks", "two_ranks"]

# Packages that tell their makers how they are used: read when they are imported, in each process.
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", WANDB_ERROR_REPORTING="false")


@pytest.fixture
def bare_ranks() -> Iterator[Ranks]:
    """Two ranks with the variables of torchrun but without a process group, fresh for each test."""
    with Ranks(2, joined=False) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Programs that start with torch imported."""
    programs = Warm()
    yield programs
    programs.stop()


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
