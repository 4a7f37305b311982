"""What a logger is."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from stratrun.loggers.record import Record


class Logger(ABC):
    """One place to which records go.

    A logger decides how a record looks there. It does not decide what is logged or when, and it
    knows of no ranks: it lives on the main one only. Constructors touch no disk and import no
    third package; `open` does. A closed logger that is given a record goes on where it stopped.
    It may have more methods, for images, text, files and the run itself: see `stratrun.loggers.abilities`.
    """

    shows_progress: ClassVar[bool] = False
    """Whether `log` also wants records of kind ``progress``, some each second."""

    in_background: ClassVar[bool] = False
    """Whether it waits for others, such as a server, and so has to be called beside the run. It is put into a
    `BackgroundLogger` then, to which its attribute `queue`, if it has one, gives arguments."""

    def open(self, folder: Path) -> None:
        """Make ready. Called once, before anything else; files belong into `folder`, which exists."""
        return None

    @abstractmethod
    def log(self, record: Record) -> None: ...

    def say(self, text: str) -> None:
        """Tell a reader something, in one or several lines."""
        return None

    def log_config(self, text: str) -> None:
        """Take the configuration of the run, secrets redacted."""
        return None

    def flush(self) -> None:
        """Have all records where they belong, should the process die."""
        return None

    def close(self) -> None:
        """Flush, and let go of files and threads."""
        return None
