"""Each mistake of the corpus is an error that says what was given, why it will not do, and what would."""

import os
from pathlib import Path

import pytest

from stratrun import connector
from stratrun.runner import start
from tests.mistakes import cases
from tests.mistakes.mistake import Mistake, message, train

LINES = 6


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that a run was connected."""
    made: list[str] = []
    connect = connector.connect

    def noted(*args: object, **kwargs: object) -> object:
        made.append("connected")
        return connect(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(start, "connect", noted)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mistake", cases.MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_an_error_that_names_value_reason_and_mend(
    mistake: Mistake, folder: Path, connections: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if mistake.prepare is not None:
        mistake.prepare(folder)
        connections.clear()
    for name, value in mistake.environ.items():
        monkeypatch.setenv(name, value)
    before = files(folder)
    with pytest.raises(mistake.error) as caught:
        mistake.act(folder)
    told = message(caught.value)
    missing = [word for word in mistake.words if word not in told]
    assert not missing, f"{missing} not in:\n{told}"
    assert len(told.splitlines()) <= LINES, told
    assert type(caught.value) is mistake.error
    assert mistake.shows != "refused" or not connections
    assert mistake.shows == "running" or files(folder) == before


def test_without_a_mistake_the_run_of_the_corpus_trains(folder: Path, connections: list[str]) -> None:
    assert set(train(folder)) == {"accuracy"}
    assert connections
    assert files(folder)


def test_the_corpus_is_large_and_says_what_each_message_must_hold() -> None:
    assert len(cases.MISTAKES) >= 60
    assert len({mistake.name for mistake in cases.MISTAKES}) == len(cases.MISTAKES)
    assert [mistake.name for mistake in cases.MISTAKES if len(mistake.words) < 2] == []


def files(folder: Path) -> set[str]:
    return {os.path.relpath(path, folder) for path in folder.rglob("*")}
