"""All loggers of a run."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from stratrun.errors import ConfigError, nearest
from stratrun.loggers.base import Logger
from stratrun.loggers.folder import RunFolder
from stratrun.loggers.record import PROGRESS, Record, check_numbers
from stratrun.loggers.unread import Unread, number_of
from stratrun.registry import LOGGERS
from stratrun.state import TrainState

_FLUSH_SECONDS = 60.0


class LoggerGroup:
    """Passes records to every logger: all of them on the main rank, none on the others.

    A logger that cannot write (a full disk, a closed pipe, an ASCII terminal) is left out from then on with a
    warning, for training must not end by it. Any other error is the logger's fault, and raised.
    """

    def __init__(self, loggers: Iterable[Logger] = (), folder: RunFolder | None = None) -> None:
        self.loggers = list(loggers)
        self.folder = folder
        self._unread = Unread()
        self._flushed = time.monotonic()
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
        self._each("log", lambda logger: logger.log(record))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._save(wait=False)

    def say(self, text: str) -> None:
        """Tell the user something that is no number, such as what the run is about to do."""
        self._each("say", lambda logger: logger.say(text))

    def log_config(self, text: str) -> None:
        """Keep the configuration beside the log files, as ``config.yaml``."""
        if self.folder is not None:
            (self.folder.path / "config.yaml").write_text(text, encoding="utf-8")
        self._each("log_config", lambda logger: logger.log_config(text))

    def flush(self) -> None:
        """Have everything where it belongs, should the process die."""
        self._save(wait=True)

    def close(self) -> None:
        """Write everything and let go of files, threads and the terminal; more may be logged later."""
        self._each("close", lambda logger: logger.close())
        if self.folder is not None:
            self.folder.upload(wait=True)

    def _save(self, *, wait: bool) -> None:
        self._flushed = time.monotonic()
        self._each("flush", lambda logger: logger.flush())
        if self.folder is not None:
            self.folder.upload(wait=wait)

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
        entry: Any = spec
        if isinstance(spec, str | Mapping | type):
            entry, _ = LOGGERS.check(spec, where="loggers")
        kind = entry if isinstance(entry, type) else type(spec)
        if (isinstance(entry, type) or entry is spec) and not issubclass(kind, Logger):
            raise ConfigError(
                f"loggers: {spec!r} is no logger; give a name, a dict with 'type' or a Logger object "
                f"({nearest('', LOGGERS.names())})"
            )
    return listed
