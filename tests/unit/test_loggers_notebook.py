"""What a notebook shows: one output that is shown anew, and results below it."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from stratrun.loggers import ConsoleLogger, Record


class Page:
    """The outputs of a cell, as a notebook keeps them: an output with an id is replaced."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.drawings = 0

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw and display_id
        place = len(self.shown)
        self.shown.append("")

        def update(data: dict[str, str], *, raw: bool) -> None:
            self.drawings += 1
            self.shown[place] = data["text/plain"]

        update(data, raw=True)
        return SimpleNamespace(update=update)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    found = Page()
    package, part = ModuleType("IPython"), ModuleType("IPython.display")
    package.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    part.display = found.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", part)
    monkeypatch.delitem(sys.modules, "stratrun.loggers.notebook", raising=False)
    return found


def record(iter: int, values: dict[str, float], kind: str = "train") -> Record:
    return Record(kind, values, epoch=0, iter=iter, time=0.0)


def progress(iter: int, **values: float) -> Record:
    return Record("progress", values, epoch=0, iter=iter)


def train(logger: ConsoleLogger, iterations: int) -> None:
    logger.log(progress(0, max_epochs=1, max_iters=iterations))
    for i in range(1, iterations + 1):
        logger.log(record(i, {"loss": 1 / i}))
    logger.log(record(iterations, {"accuracy": 0.75}, "val"))
    logger.log(progress(iterations, done=1))


def test_training_is_one_output_that_ends_with_the_last_state(
    page: Page, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = ConsoleLogger()
    logger.open(Path())
    train(logger, 50)
    assert len(page.shown) == 1
    assert "50/50" in page.shown[0] and "loss 0.02" in page.shown[0]
    out = capsys.readouterr().out
    assert "accuracy 0.75" in out and "loss" not in out and "\x1b" not in out + page.shown[0]


def test_a_page_far_away_is_not_sent_every_step(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    logger = ConsoleLogger()
    logger.open(Path())
    train(logger, 500)
    assert page.drawings < 10


def test_what_is_trained_next_has_an_output_of_its_own(
    page: Page, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = ConsoleLogger()
    logger.open(Path())
    train(logger, 3)
    train(logger, 4)
    assert ["3/3" in page.shown[0], "4/4" in page.shown[1]] == [True, True]


def test_a_notebook_that_wants_plain_lines_gets_them(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    logger = ConsoleLogger(live=False)
    logger.open(Path())
    train(logger, 3)
    assert page.shown == []
    assert "kind=train epoch=1/1 iter=1/3 loss=1" in capsys.readouterr().out


def test_a_terminal_of_ipython_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("IPython")
    package.get_ipython = lambda: SimpleNamespace()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    logger = ConsoleLogger()
    logger.open(Path())
    assert logger._line is None
