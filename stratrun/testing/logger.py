"""Whether a logger writes what it is given, and leaves training alone."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from stratrun.errors import ConfigError
from stratrun.loggers import Logger, Record
from stratrun.loggers.abilities import ABILITIES, verb_of
from stratrun.loggers.record import PROGRESS
from stratrun.registry import LOGGERS
from stratrun.testing import job as jobs
from stratrun.testing.compare import differences
from stratrun.testing.ranks import shared_ranks
from stratrun.testing.report import Checks, NotChecked, Report, Wrong
from stratrun.testing.running import alone
from stratrun.testing.spec import portable, title

CLAIMS = {
    "construction": "making one touches no disk",
    "records": "it takes any record, and changes none",
    "flushing": "what it was given is on disk after flush()",
    "going on": "after close() it goes on where it stopped, losing nothing",
    "failing disk": "where it cannot write it raises an OSError, by which the run goes on without it",
    "abilities": "what it takes of images, texts, files and runs it keeps, and changes none of it",
    "a run": "on two ranks it writes what one process writes, and training goes on as without it",
}


def check_logger(
    logger: Any, *, form: jobs.Form = jobs.nothing, only: Collection[str] | None = None
) -> Report:
    """Give a logger records of all sorts, and have it log a small training run.

    Args:
        logger: A name, a class, or a dict with `type` and arguments; each check makes one of its own.
        form: Module-level function; returns arguments of the Runner for the run.
        only: Names of the checks to run, of `logger.CLAIMS`; all by default.

    Raises:
        CheckFailure: some failed. The message says which and why.
    """
    if isinstance(logger, Logger):
        raise ConfigError(
            f"logger={logger!r} is an object; give its class, or dict(type=TheClass, option=...)"
        )
    LOGGERS.check(logger, where="logger")
    checks = Checks(f"logger={title(logger)}", CLAIMS, only)
    trial = _Trial(portable(LOGGERS, logger), form)
    methods: dict[str, Callable[[], Any]] = {
        "construction": trial.construction,
        "records": trial.records,
        "flushing": trial.flushing,
        "going on": trial.going_on,
        "failing disk": trial.failing_disk,
        "abilities": trial.abilities,
        "a run": trial.a_run,
    }
    try:
        for name, claim in CLAIMS.items():
            checks.run(name, claim, methods[name])
    finally:
        trial.close()
    return checks.done()


def records() -> list[Record]:
    """Records as runs give them: other names each time, values that are no numbers, names of counters."""
    return [
        Record("train", {"loss": 1.5, "lr": 1e-3}, iter=1, step=1, samples=8),
        Record("train", {"loss": math.nan, "grad_norm": math.inf}, iter=2, step=2, samples=16),
        Record(
            "val", {"first/accuracy": 0.5, "second/accuracy": -math.inf}, epoch=1, iter=2, step=2, samples=16
        ),
        Record("train", {"iter": 3.5, "naïve loss, in %": 7.0}, epoch=1, iter=3, step=2, samples=24),
        Record("my own", {"x" * 80: 1e300}, epoch=1, iter=3, step=2, samples=24),
        Record("val", {}, epoch=2, iter=4, step=3, samples=32),
    ]


def _shown(file: Path, *, images: bool) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments for each verb beside `log`: names that are no good paths, pictures of each mode."""
    names = ["plain", "a/b c", "../naïve, in %"]
    pictures: list[Any] = []
    if images:
        from PIL import Image

        pictures = [Image.new(mode, (5, 3), 7) for mode in ("L", "RGB", "RGBA")]
    return {
        "start_run": [("c0ffee123456",)],
        "log_image": [(name, picture, 3) for name in names for picture in pictures],
        "log_text": [(name, "<a> & ü\nb", 3) for name in names],
        "log_file": [(name, file) for name in names],
        "end_run": [("finished",), ("failed",), ("killed",)],
    }


class _Trial:
    """The folders and runs of one logger."""

    def __init__(self, spec: Any, form: jobs.Form) -> None:
        self.spec, self.form = spec, form
        self.folder = Path(tempfile.mkdtemp(prefix="stratrun-check-"))
        self.ranks = shared_ranks(2)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def opened(self, name: str) -> tuple[Logger, Path]:
        logger: Logger = LOGGERS.build(self.spec)
        folder = self.folder / name
        folder.mkdir()
        logger.open(folder)
        return logger, folder

    # -- the checks

    def construction(self) -> None:
        empty = self.folder / "empty"
        empty.mkdir()
        before = os.getcwd()
        os.chdir(empty)
        try:
            logger = LOGGERS.build(self.spec)
        finally:
            os.chdir(before)
        if not isinstance(logger, Logger):
            raise Wrong(f"it makes a {type(logger).__name__}, which is no stratrun.Logger")
        if left := [path.name for path in empty.iterdir()]:
            raise Wrong(f"the constructor wrote {', '.join(left)}", "files are made in open(folder)")

    def records(self) -> None:
        logger, _ = self.opened("records")
        given = records()
        if logger.shows_progress:
            given.append(Record(PROGRESS, {}, epoch=2, iter=4, step=3, samples=32))
        before = [repr(record) for record in given]
        logger.say("two\nlines")
        logger.log_config("optimizer:\n  type: SGD\n")
        for record in given:
            logger.log(record)
        logger.flush()
        logger.flush()
        logger.close()
        logger.close()
        for record, text in zip(given, before, strict=True):
            if repr(record) != text:
                raise Wrong(
                    f"it changed {text} into {record!r}", "a record goes to all loggers; copy what you change"
                )

    def flushing(self) -> str:
        logger, folder = self.opened("flushing")
        sizes = []
        for record in records()[:3]:
            logger.log(record)
            logger.flush()
            sizes.append(_size(folder))
        logger.close()
        if not _size(folder):
            raise NotChecked("it writes no files")
        if not sizes[0] < sizes[1] < sizes[2]:
            raise Wrong(
                f"after each of three records its files have {sizes[0]}, {sizes[1]}, {sizes[2]} bytes",
                "flush() empties its own buffers and those of its files",
            )
        return ", ".join(sorted(path.name for path in folder.rglob("*") if path.is_file()))[:200]

    def going_on(self) -> None:
        logger, folder = self.opened("going-on")
        sizes = []
        for _ in range(3):
            logger.log(records()[0])
            logger.close()
            sizes.append(_size(folder))
        if sizes[0] and not sizes[0] < sizes[1] < sizes[2]:
            raise Wrong(
                f"closed after each of three records its files have {sizes[0]}, {sizes[1]}, {sizes[2]} bytes",
                "log() opens again what close() closed, for appending",
            )

    def failing_disk(self) -> str:
        logger, folder = self.opened("gone")
        shutil.rmtree(folder)
        try:
            for record in records()[:2]:
                logger.log(record)
            logger.flush()
            logger.close()
        except (OSError, UnicodeError) as error:
            return f"{type(error).__name__}"
        except Exception as error:
            raise Wrong(
                f"it raised {type(error).__name__}: {error}", "let an OSError through, as it comes"
            ) from error
        return "it went on"

    def abilities(self) -> str:
        logger, _ = self.opened("abilities")
        verbs = [verb for verb in ABILITIES if verb_of(logger, verb) is not None]
        if not verbs:
            raise NotChecked("it takes nothing but values")
        own = self.folder / "given.txt"
        own.write_text("content")
        before = set(self.folder.iterdir())
        given = _shown(own, images="log_image" in verbs)
        pictures = [arguments[1] for arguments in given["log_image"]]
        pixels = [picture.tobytes() for picture in pictures]
        for verb, calls in given.items():
            for arguments in calls if verb in verbs else ():
                getattr(logger, verb)(*arguments)
        logger.close()
        if [picture.tobytes() for picture in pictures] != pixels:
            raise Wrong("it changed an image", "an image goes to all loggers; copy what you change")
        if own.read_text() != "content":
            raise Wrong("it changed a file that it was given")
        if outside := [path.name for path in self.folder.iterdir() if path not in before]:
            raise Wrong(f"it wrote {', '.join(outside)} beside its folder", "a name may lead out of it")
        return ", ".join(verbs)

    def a_run(self) -> str:
        changes = {"loggers": [self.spec], "default_hooks": {"checkpoint": None, "logger": {"interval": 2}}}
        one, spread, quiet = (str(self.folder / name) for name in ("one", "spread", "quiet"))
        seen = alone(jobs.run, self.form, changes, one)
        silent = alone(jobs.run, self.form, {}, quiet)
        self.ranks(jobs.on_rank, self.form, {**changes, "strategy": "ddp"}, spread)
        if wrong := differences(seen.weights, silent.weights, 0.0):
            raise Wrong(f"training ended elsewhere with it: {wrong}")
        written = [sorted(_written(Path(place))) for place in (one, spread)]
        if len(written[0]) != len(written[1]):
            raise Wrong(
                f"one process wrote {written[0]}, two ranks {written[1]}", "it lives on the main rank alone"
            )
        return ", ".join(written[0])[:200] or "it writes no files"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _written(place: Path) -> list[str]:
    return [path.name for path in place.rglob("*") if path.is_file()]
