"""What a person reads: plain lines in a file, one live line on a terminal."""

import io
import os
import re
import sys
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from stratrun.loggers import ConsoleLogger, Record
from stratrun.loggers import live as live_module
from stratrun.loggers.text import duration, number

VALUES = {
    "acc": 0.5,
    "memory": 312.4,
    "eta": 3723.0,
    "time": 0.01234,
    "data_time": 0.0000123,
    "data_share": 0.001,
    "loss": 0.312449,
    "lr": 1e-3,
}


def record(iter: int, values: dict[str, float] | None = None, kind: str = "train") -> Record:
    return Record(kind, {"loss": 1.0} if values is None else values, epoch=2, iter=iter, time=0.0)


def progress(**values: float) -> Record:
    return Record("progress", values, epoch=2, iter=7)


def plain(*records: Record, every_seconds: float = 0.0) -> list[str]:
    stream = io.StringIO()
    logger = ConsoleLogger(every_seconds=every_seconds, stream=stream)
    logger.open(Path())
    for one in records:
        logger.log(one)
    logger.close()
    return stream.getvalue().splitlines()


class Terminal:
    """A stream that says it is a terminal, and what it was sent."""

    def __init__(self, screen: int, end: int, stream: TextIO) -> None:
        self._screen, self._end, self.stream = screen, end, stream

    def drawn(self) -> str:
        """What was sent since the last call, without colours."""
        self.stream.flush()
        # The kernel passes bytes on when it pleases, so wait for one that comes after them.
        os.write(self._end, b"\0")
        sent = b""
        while not sent.endswith(b"\0"):
            sent += os.read(self._screen, 1 << 16)
        return re.sub(r"\x1b\[[0-9;]*m", "", sent[:-1].decode())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """100 columns wide."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    screen, end = os.openpty()
    tty.setraw(end)
    with open(end, "w", encoding="utf-8") as stream:
        yield Terminal(screen, end, stream)
    os.close(screen)


def test_a_plain_line_shows_what_matters_in_order() -> None:
    _, line = plain(progress(max_epochs=10, max_iters=570), record(150, VALUES), record(150, VALUES))
    assert re.sub(r"^at=\d\d:\d\d:\d\d ", "", line) == (
        "kind=train epoch=3/10 iter=150/570 lr=0.001 loss=0.3124 acc=0.5 "
        "time=0.0123 data_time=0.000012 data_share=0% eta=1:02:03 memory=312"
    )


def test_plain_lines_are_words_with_one_equals_sign_and_no_control_characters() -> None:
    odd = {"top 1=\x1b[31m": 0.5, "a\nb": 1.0, "": 2.0}
    lines = plain(record(1, VALUES | odd), record(1, odd, "val"))
    assert len(lines) == 2
    for line in lines:
        assert line.isprintable()
        assert all(word.count("=") == 1 for word in line.split())


def test_of_the_rates_of_many_groups_a_line_has_the_least_and_the_greatest() -> None:
    rates = {f"lr/layer_{number}": 0.5**number for number in range(5)}
    _, line = plain(progress(max_epochs=10, max_iters=0), *[record(1, {**rates, "loss": 1.0})] * 2)
    assert line.split()[4:] == ["lr/min=0.0625", "lr/max=1", "loss=1"]
    few = dict(list(rates.items())[:4])
    _, line = plain(progress(max_epochs=10, max_iters=0), *[record(1, few)] * 2)
    assert line.split()[4:] == [f"lr/layer_{n}={v}" for n, v in enumerate(("1", "0.5", "0.25", "0.125"))]


def test_results_carry_the_epochs_that_are_done_and_training_the_one_under_way() -> None:
    lines = plain(
        progress(max_epochs=10, max_iters=0),
        record(150),
        record(150, {"loss_epoch": 1.0}),
        record(150, {"accuracy": 1.0}, "val"),
    )
    assert [re.findall(r"epoch=(\S+)", line)[0] for line in lines] == ["3/10", "2/10", "2/10"]


def test_a_line_says_nothing_of_what_is_not_known() -> None:
    (line,) = plain(Record("test", {"accuracy": 0.75}))
    assert line.split()[1:] == ["kind=test", "accuracy=0.75"]
    _, line = plain(progress(max_epochs=0, max_iters=20), *[record(5)] * 2)
    assert line.split()[1:] == ["kind=train", "iter=5/20", "loss=1"]


def test_training_lines_come_one_in_so_many_seconds_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    logger = ConsoleLogger(stream=stream)
    logger.open(Path())
    for i in range(1, 13):
        logger.log(record(i))
        now[0] += 4.0
    logger.log(progress(done=1))
    shown = [int(found) for found in re.findall(r"iter=(\d+)", stream.getvalue())]
    assert shown == [1, 4, 7, 10, 12]


def test_results_are_always_shown() -> None:
    lines = plain(
        record(1),
        record(2),
        record(2, {"accuracy": 1.0}, "val"),
        record(3, {"accuracy": 1.0}, "val"),
        every_seconds=1e9,
    )
    assert [line.split()[-1] for line in lines] == ["loss=1", "accuracy=1", "accuracy=1"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def told_in(
    clock: list[float], epochs: int, iterations: int, validates: bool = False
) -> list[tuple[float, str]]:
    """When which lines are printed, where an iteration takes two seconds and is logged."""
    stream = io.StringIO()
    logger = ConsoleLogger(stream=stream)
    logger.open(Path())
    found: list[tuple[float, str]] = []

    def log(*given: object, **values: object) -> None:
        logger.log(record(*given, **values))  # type: ignore[arg-type]
        lines = stream.getvalue().splitlines()[len(found) :]
        found.extend((clock[0], line.split()[-1].partition("=")[0]) for line in lines)

    for i in range(1, epochs * iterations + 1):
        clock[0] += 2.0
        log(i)
        if i % iterations == 0:
            log(i, {"loss_epoch": 1.0})
            if validates:
                log(i, {"accuracy": 1.0}, "val")
    logger.log(progress(done=1))
    return found


def test_however_short_epochs_are_a_line_is_printed_once_in_so_many_seconds(clock: list[float]) -> None:
    found = told_in(clock, epochs=12, iterations=1)
    assert found == [(2.0, "loss"), (12.0, "loss_epoch"), (22.0, "loss_epoch")]


def test_the_mean_of_a_long_epoch_is_told_with_the_next_line(clock: list[float]) -> None:
    found = told_in(clock, epochs=2, iterations=9)
    assert found == [(2.0, "loss"), (12.0, "loss"), (22.0, "loss_epoch"), (32.0, "loss")]


def test_the_mean_of_a_long_epoch_is_told_before_its_results(clock: list[float]) -> None:
    found = told_in(clock, epochs=2, iterations=9, validates=True)
    assert found[2:4] == [(18.0, "loss_epoch"), (18.0, "accuracy")]
    assert found[-2:] == [(36.0, "loss_epoch"), (36.0, "accuracy")]


def test_notes_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    logger = ConsoleLogger()
    logger.open(Path())
    logger.say("strategy=single\n[bold]precision[/]=32-true")
    assert capsys.readouterr().out == "strategy=single\n[bold]precision[/]=32-true\n"


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_draw_gets_plain_lines(
    term: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    logger = ConsoleLogger(stream=terminal.stream)
    logger.open(Path())
    logger.log(record(1, {"loss": 0.5}))
    assert terminal.drawn().split()[1:] == ["kind=train", "iter=1", "loss=0.5"]


def test_a_live_line_is_drawn_over_and_results_stay_above_it(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module.LiveLine, "every_seconds", 0.0)
    logger = ConsoleLogger(stream=terminal.stream)
    logger.open(Path())
    logger.log(progress(max_epochs=10, max_iters=570))
    terminal.drawn()
    logger.log(record(150, VALUES))
    line = terminal.drawn()
    assert "\r\x1b[2K" in line and "\n" not in line
    assert line.endswith(
        "epoch 3/10  ━━━━━───────────────  150/570  eta 1:02:03  lr 0.001  loss 0.3124  acc 0.5  time 12.3 …"
    )
    logger.log(progress(val=12))
    assert "150/570" not in (line := terminal.drawn()) and "  val 12  " in line and "loss 0.3124" in line
    logger.log(record(150, {"accuracy": 0.75}, "val"))
    result = terminal.drawn()
    assert re.search(r"val    epoch 2/10  iter 150/570  accuracy 0.75\s*\n", result)
    logger.log(progress(done=1))
    last = terminal.drawn()
    assert last.endswith("\x1b[?25h") and "val 12" not in last
    logger.say("bye [b]x[/b]")
    assert terminal.drawn().strip() == "bye [b]x[/b]"


def test_a_narrow_terminal_gets_one_line_all_the_same(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    logger = ConsoleLogger(stream=terminal.stream)
    logger.open(Path())
    logger.log(progress(max_epochs=10, max_iters=570))
    logger.log(record(150, VALUES))
    logger.close()
    shown = re.split(r"\x1b\[[?0-9;]*[a-zA-Z]|[\r\n]+", terminal.drawn())
    assert max(map(len, shown)) == 39


def test_drawing_is_not_done_more_often_than_an_eye_can_see(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    logger = ConsoleLogger(stream=terminal.stream)
    logger.open(Path())
    # Few enough for the kernel to hold even if each of them were drawn.
    for i in range(40):
        logger.log(record(i, {"loss": 0.5}))
        now[0] += 0.021
    # The first is drawn over nothing.
    assert terminal.drawn().count("\x1b[2K") == 7
    logger.close()
    assert "39  loss" in terminal.drawn()


def test_prints_of_others_go_above_the_line_until_it_ends(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    logger = ConsoleLogger()
    logger.open(Path())
    logger.log(record(1, {"loss": 0.5}))
    terminal.drawn()
    print("a word of the user")
    assert re.search(r"a word of the user\s*\n.*loss 0.5", terminal.drawn(), re.S)
    pid = os.fork()
    if not pid:
        # A loader's worker: it must not draw.
        os._exit(0 if sys.stdout is terminal.stream else 1)
    assert os.waitpid(pid, 0)[1] == 0
    logger.close()
    assert sys.stdout is terminal.stream
    terminal.drawn()
    print("later")
    assert terminal.drawn() == "later\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.312449, "0.3124"),
        (12.0, "12"),
        (-3.0, "-3"),
        (1234.56, "1234.6"),
        (123456.7, "123457"),
        (1e-5, "1e-05"),
        (0.00012345678, "0.0001235"),
        (1e20, "1e+20"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_numbers_have_four_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_durations_are_hours_minutes_and_seconds() -> None:
    assert [duration(s) for s in (0.4, 59.6, 90061, float("inf"))] == [
        "0:00:00",
        "0:01:00",
        "25:01:01",
        "inf",
    ]
