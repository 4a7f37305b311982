"""A logger behind a queue: one that blocks, is slow, or fails, neither holds up a run nor ends it."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stratrun import Runner
from stratrun.errors import ConfigError
from stratrun.loggers import BackgroundLogger, Logger, LoggerGroup, Record
from stratrun.loggers.queue import Call, CallQueue
from tests.problems import perceptron, points, weights

ROOT = Path(__file__).parents[2]


class Remote(Logger):
    """Stands for a server: writes when `gate` is open, and fails as it is told to."""

    in_background = True

    def __init__(self, fails: Callable[[str], Exception | None] = lambda verb: None) -> None:
        self.fails = fails
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Event()
        self.heard: list[Any] = []
        self.threads: set[str] = set()

    def _hear(self, verb: str, heard: Any) -> None:
        self.threads.add(threading.current_thread().name)
        self.at_gate.set()
        assert self.gate.wait(30)
        error = self.fails(verb)
        if error is not None:
            raise error
        self.heard.append(heard)

    def open(self, folder: Path) -> None:
        self._hear("open", "open")

    def log(self, record: Record) -> None:
        self._hear("log", record.iter)

    def log_file(self, name: str, path: Path) -> None:
        self._hear("log_file", name)

    def log_image(self, name: str, image: Any, step: int) -> None:
        self._hear("log_image", (name, step))

    def close(self) -> None:
        self._hear("close", "close")


@pytest.fixture
def behind() -> Iterator[Callable[..., BackgroundLogger]]:
    """A logger put behind a queue; its gate is open at the end of the test."""
    made: list[BackgroundLogger] = []

    def make(remote: Remote, **options: Any) -> BackgroundLogger:
        made.append(BackgroundLogger(remote, **options))
        return made[-1]

    yield make
    for logger in made:
        logger.logger.gate.set()  # type: ignore[attr-defined]
        logger.close()


def record(number: int) -> Record:
    return Record("train", {"loss": 1.0}, iter=number)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.name == "stratrun.loggers"]


def test_all_is_written_in_order_by_another_thread(tmp_path: Path, behind: Any) -> None:
    remote = Remote()
    logger = behind(remote)
    logger.open(tmp_path)
    for number in range(100):
        logger.log(record(number))
    logger.log_file("a", tmp_path)
    logger.close()
    assert remote.heard == ["open", *range(100), "a", "close"]
    assert remote.threads == {"stratrun-Remote"}
    logger.log(record(100))
    logger.flush()
    assert remote.heard[-1] == 100


def test_one_that_blocks_keeps_nobody_waiting_and_the_oldest_values_go(
    behind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    remote = Remote()
    logger = behind(remote, capacity=10)
    remote.gate.clear()
    logger.log(record(-1))
    assert remote.at_gate.wait(10)  # taken: it is not among those that wait
    logger.log_file("kept", Path("x"))
    began = time.perf_counter()
    for number in range(1000):
        logger.log(record(number))
    assert time.perf_counter() - began < 1
    assert logger.dropped == 990
    assert len(warned(caplog)) == 1 and "10 values wait" in warned(caplog)[0]
    remote.gate.set()
    logger.close()
    assert remote.heard == [-1, "kept", *range(990, 1000), "close"]
    assert warned(caplog)[1:] == ["Remote: 990 values were dropped"]


def test_images_go_when_they_take_too_much_memory_and_files_stay() -> None:
    queue = CallQueue(100, room=1000)
    for number in range(5):
        queue.put(Call(f"image {number}", lambda: None, size=400, may_drop=True))
        queue.put(Call(f"file {number}", lambda: None))
    assert queue.waiting() == ["file 0", "file 1", "file 2", "image 3", "file 3", "image 4", "file 4"]
    assert queue.dropped == 3


def test_one_that_fails_is_told_of_once_and_tried_again(
    behind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([ValueError("no route to https://me:hunter2@host/"), KeyError("x"), None, None])
    remote = Remote(lambda verb: next(answers))
    logger = behind(remote)
    for number in range(3):
        logger.log(record(number))
    logger.close()
    assert remote.heard == [2, "close"]
    first, last = warned(caplog)
    assert first.startswith(
        "Remote: its log failed: ValueError: no route to https://***@host/; the run goes on"
    )
    assert last == "Remote: 2 calls of log failed"
    logger.close()
    assert len(warned(caplog)) == 2


def test_one_that_fails_when_it_is_closed_is_told_of(behind: Any, caplog: pytest.LogCaptureFixture) -> None:
    remote = Remote(lambda verb: SystemError("gone") if verb == "close" else None)
    logger = behind(remote)
    logger.log(record(0))
    logger.close()
    assert remote.heard == [0]
    assert warned(caplog) == [
        "Remote: its close failed: SystemError: gone; the run goes on",
        "Remote: 1 calls of close failed",
    ]


def test_one_that_hangs_is_waited_for_until_the_deadline_and_not_again(
    behind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    remote = Remote()
    logger = behind(remote, deadline=0.2)
    remote.gate.clear()
    logger.log(record(0))
    logger.log(record(1))
    began = time.perf_counter()
    logger.flush()
    assert 0.2 <= time.perf_counter() - began < 2
    (told,) = warned(caplog)
    assert told == "Remote: after 0.2 s there is still to be done: 2 of log, 1 of flush; the run goes on"
    began = time.perf_counter()
    logger.close()
    assert time.perf_counter() - began < 0.15
    remote.gate.set()
    assert logger._queue.wait(10)
    logger.log(record(2))
    logger.close()
    assert remote.heard[-2:] == [2, "close"]


def test_a_slow_one_that_gets_on_is_given_the_time_each_time(behind: Any) -> None:
    remote = Remote()
    remote.fails = lambda verb: time.sleep(0.05)  # type: ignore[func-returns-value]
    logger = behind(remote, deadline=5)
    for number in range(8):
        logger.log(record(number))
    logger.flush()
    assert remote.heard == list(range(8))


def test_a_group_puts_what_says_so_behind_a_queue_and_flushes_it_at_the_end_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote()
    remote.queue = {"capacity": 7, "deadline": 3}  # type: ignore[attr-defined]
    group = LoggerGroup.build([remote], work_dir=str(tmp_path), is_main=True)
    (logger,) = group.loggers
    assert isinstance(logger, BackgroundLogger)
    assert (logger.capacity, logger.deadline) == (7, 3.0)
    flushed: list[float] = []
    monkeypatch.setattr(logger, "flush", lambda: flushed.append(0))
    monkeypatch.setattr("stratrun.loggers.group._FLUSH_SECONDS", -1.0)
    group.log(record(0))
    assert flushed == []
    group.flush()
    assert flushed == [0]
    group.close()
    assert remote.heard == ["open", 0, "close"]


def test_what_the_logger_within_takes_is_taken_and_no_more(tmp_path: Path) -> None:
    assert not hasattr(BackgroundLogger(dict(type="jsonl")), "log_image")
    logger = BackgroundLogger("files")
    logger.open(tmp_path)
    logger.log_image("a", Image.new("L", (2, 2)), 1)  # type: ignore[attr-defined]
    logger.close()
    assert (tmp_path / "images" / "a" / "00000001.png").exists()


def test_a_run_with_workers_and_a_server_that_hangs_trains_as_without_it(tmp_path: Path) -> None:
    remote = Remote()
    remote.gate.clear()
    remote.queue = {"deadline": 0.1}  # type: ignore[attr-defined]
    ended = {}
    for name, loggers in (("with", [remote]), ("without", [])):
        runner = Runner(
            perceptron(),
            loss="cross_entropy",
            train_dataloader={"dataset": points(24), "global_batch_size": 4, "num_workers": 1},
            train_cfg={"max_epochs": 2},
            optimizer={"type": "SGD", "lr": 0.1},
            work_dir=tmp_path / name,
            loggers=loggers,
            default_hooks={"checkpoint": None, "logger": {"interval": 1}},
            randomness={"seed": 1},
        )
        runner.train()
        runner.close()
        ended[name] = weights(runner.model)
    assert all(torch.equal(ended["with"][name], value) for name, value in ended["without"].items())
    assert remote.heard == []
    remote.gate.set()
    for thread in threading.enumerate():
        if thread.name == "stratrun-Remote":
            thread.join(10)
    assert [one for one in remote.heard if type(one) is int] == [*range(1, 7), 6, *range(7, 13), 12]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_writes_nothing_and_ends(tmp_path: Path, behind: Any) -> None:
    remote = Remote()
    logger = behind(remote)
    remote.gate.clear()
    logger.log(record(0))
    assert remote.at_gate.wait(10)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            logger.log(record(1))
            logger.flush()
            logger.close()
            code = len(remote.heard)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    remote.gate.set()
    logger.close()
    assert remote.heard == [0, "close"]


@pytest.mark.parametrize(
    ("body", "deadline", "code", "written"),
    [("", 30, 0, 20), ("sys.exit(3)", 30, 3, 20), ("raise ValueError", 30, 1, 20), ("", 0, 0, 0)],
)
def test_a_process_that_ends_writes_what_waits_until_the_deadline(
    tmp_path: Path, body: str, deadline: float, code: int, written: int
) -> None:
    script = f"""
        import sys, time
        from pathlib import Path
        from stratrun.loggers import BackgroundLogger, JsonlLogger, Record

        class Slow(JsonlLogger):
            def open(self, folder):
                time.sleep(0.3)
                super().open(folder)

        logger = BackgroundLogger(Slow, deadline={deadline})
        logger.open(Path({str(tmp_path)!r}))
        for number in range(20):
            logger.log(Record("train", {{}}, iter=number))
        {body}
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    path = tmp_path / "metrics.jsonl"
    assert (len(path.read_text().splitlines()) if path.exists() else 0) == written


@pytest.mark.parametrize(
    "options", [{"capacity": 0}, {"capacity": 2.0}, {"deadline": -1}, {"deadline": True}]
)
def test_a_wrong_limit_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        BackgroundLogger("jsonl", **options)
