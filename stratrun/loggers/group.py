"""All loggers of a run."""

import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stratrun.errors import ConfigError, nearest
from stratrun.loggers.abilities import Outcome, verb_of
from stratrun.loggers.background import BackgroundLogger
from stratrun.loggers.base import Logger
from stratrun.loggers.folder import RunFolder
from stratrun.loggers.images import check_image, picture_of
from stratrun.loggers.names import writable
from stratrun.loggers.record import PROGRESS, Record, check_numbers
from stratrun.loggers.unread import Unread, number_of
from stratrun.problems import part
from stratrun.registry import LOGGERS
from stratrun.state import TrainState

_FLUSH_SECONDS = 60.0


class LoggerGroup:
    """Passes records to every logger: all of them on the main rank, none on the others.

    A logger that cannot write (a full disk, a closed pipe, an ASCII terminal) is left out from then on with a
    warning, for training must not end by it. Any other error is the logger's fault, and raised.
    """

    def __init__(self, loggers: Iterable[Logger] = (), folder: RunFolder | None = None) -> None:
        self.loggers: list[BackgroundLogger | Logger] = [
            _beside(logger) if logger.in_background else logger for logger in loggers
        ]
        self.folder = folder
        self._told: set[str] = set()
        self._unread = Unread()
        self._flushed = time.monotonic()
        self.postponed: Callable[[], None] | None = None
        """Called once, before the first record or when all is written: for what is not to delay the start."""
        if folder is not None:
            self._each("open", lambda logger: logger.open(folder.path))

    @classmethod
    def build(cls, specs: Any, *, work_dir: str, is_main: bool, **storage_options: Any) -> "LoggerGroup":
        """Make the loggers and a new folder for their files, on the main rank.

        Args:
            specs: Names, dicts with `type` or `Logger` objects.

        Raises:
            ConfigError: a spec is wrong (on every rank), or the folder cannot be made (on the main one).
        """
        specs = check_loggers(specs)
        if not is_main:
            return cls()
        folder = RunFolder(work_dir, **storage_options)
        return cls([LOGGERS.build(spec, where="loggers") for spec in specs], folder)

    def log_values(
        self, values: Mapping[str, Tensor | float], state: TrainState, *, kind: str = "train"
    ) -> None:
        """Record values under the counters of `state`; tensors are read with one transfer.

        Raises:
            ConfigError: one of them is no single number, on every rank.
        """
        check_numbers(values)
        if self.loggers:
            taken = {name: self._unread.take(value) for name, value in values.items()}
            numbers = self._unread.read()
            self.log(Record.of(kind, {name: number_of(t, numbers) for name, t in taken.items()}, state))

    def log(self, record: Record) -> None:
        if record.kind == PROGRESS:
            self._each("log", lambda logger: logger.log(record) if logger.shows_progress else None)
            return
        self._do_postponed()
        self._each("log", lambda logger: logger.log(record))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._save(at_once=False)

    def say(self, text: str) -> None:
        """Tell the user something that is no number, such as what the run is about to do."""
        self._each("say", lambda logger: logger.say(text))

    def log_config(self, text: str) -> None:
        """Keep the configuration beside the log files, as ``config.yaml``."""
        if self.folder is not None:
            (self.folder.path / "config.yaml").write_text(text, encoding="utf-8")
        self._each("log_config", lambda logger: logger.log_config(text))

    def log_image(self, name: str, image: Any, step: int) -> None:
        """Show an image, or a batch of them, as one picture; reads a tensor from its device.

        Raises:
            ConfigError: it is no image, on every rank.
        """
        name = writable(name, f"log_image: the name {name!r}")
        check_image(image, name)
        if not any(verb_of(logger, "log_image") for logger in self.loggers):
            self._offer("log_image", "images")
            return
        picture, cut = picture_of(image)
        if cut and f"cut {name}" not in self._told:
            self._told.add(f"cut {name}")
            self.say(
                f"stratrun: log_image({name!r}): some values are not from 0 to 1, and cut off; scale them, "
                "or undo the normalisation of the inputs"
            )
        self._offer("log_image", "images", name, picture, step)

    def log_text(self, name: str, text: str, step: int) -> None:
        """
        Raises:
            ConfigError: it is no text, on every rank.
        """
        name = writable(name, f"log_text: the name {name!r}")
        text = writable(text, f"log_text({name!r}): {text!r:.100}")
        self._offer("log_text", "texts", name, text, step)

    def log_file(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        """Keep a file of the main rank's; it is read now or, by what goes over a network, a little later.

        Raises:
            ConfigError: there is no such file (on the main rank), or the name is no text.
        """
        name = writable(name or Path(path).name, f"log_file: the name {name!r}")
        if self.loggers:
            if not Path(path).is_file():
                raise ConfigError(f"log_file({os.fspath(path)!r}): there is no such file")
            self._offer("log_file", "files", name, Path(path).absolute())

    def start_run(self, run_id: str) -> None:
        """Say which run the records are of, before each job: the same when it is gone on with."""
        self._known("start_run", run_id)

    def end_run(self, outcome: Outcome) -> None:
        """Say how a job has ended."""
        self._known("end_run", outcome)

    def flush(self) -> None:
        """Have everything where it belongs, should the process die."""
        self._do_postponed()
        self._save(at_once=True)

    def close(self) -> None:
        """Write everything and let go of files, threads and the terminal; more may be logged later."""
        self._each("close", lambda logger: logger.close())
        if self.folder is not None:
            self.folder.upload(wait=True)

    def _do_postponed(self) -> None:
        if (postponed := self.postponed) is not None:
            self.postponed = None
            postponed()

    def _save(self, *, at_once: bool) -> None:
        self._flushed = time.monotonic()
        # One beside the run writes as soon as it can: there is only waiting for it.
        waits = () if at_once else BackgroundLogger
        self._each("flush", lambda logger: None if isinstance(logger, waits) else logger.flush())
        if self.folder is not None:
            self.folder.upload(wait=at_once)

    def _offer(self, verb: str, what: str, *args: Any) -> None:
        """Give something to each logger that takes it; say once if none does."""
        takers = [logger for logger in self.loggers if verb_of(logger, verb) is not None]
        if not takers and self.loggers and what not in self._told:
            self._told.add(what)
            names = ", ".join(type(logger).__name__ for logger in self.loggers)
            self.say(f"stratrun: {what} are kept by none of the loggers ({names}); add 'files' to loggers")
        self._each(verb, lambda logger: getattr(logger, verb)(*args) if logger in takers else None)

    def _known(self, verb: str, *args: Any) -> None:
        self._each(verb, lambda logger: (verb_of(logger, verb) or _nothing)(*args))

    def _each(self, verb: str, act: Callable[[Logger], None]) -> None:
        for logger in list(self.loggers):
            try:
                act(logger)
            except (OSError, UnicodeError) as error:
                self.loggers.remove(logger)
                warnings.warn(
                    f"{type(logger).__name__} is switched off, its {verb} failed: "
                    f"{type(error).__name__}: {error}",
                    stacklevel=2,
                )


def _beside(logger: Logger) -> BackgroundLogger:
    return BackgroundLogger(logger, **getattr(logger, "queue", None) or {})


def _nothing(*_: Any) -> None: ...


def check_loggers(specs: Any) -> list[Any]:
    """The specs as a list.

    Raises:
        ConfigError: one of them is unknown, or is no logger.
    """
    if specs is None:
        return []
    if isinstance(specs, str | Mapping | type | Logger):
        specs = [specs]
    if not isinstance(specs, Iterable):
        raise ConfigError(f"loggers={specs!r} must be a list of names, dicts with 'type' or Logger objects")
    listed = list(specs)
    for spec in listed:
        with part():
            _check_logger(spec)
    return listed


def _check_logger(spec: Any) -> None:
    entry: Any = spec
    if isinstance(spec, str | Mapping | type):
        entry, _ = LOGGERS.check(spec, where="loggers")
    kind = entry if isinstance(entry, type) else type(spec)
    if (isinstance(entry, type) or entry is spec) and not issubclass(kind, Logger):
        raise ConfigError(
            f"loggers: {spec!r} is no logger; give a name, a dict with 'type' or a Logger object "
            f"({nearest('', LOGGERS.names())})"
        )
