"""Exceptions that a caller may want to catch.

StratrunError
|-- ConfigError                  a value the user wrote is wrong (also a ValueError)
|   |-- UnknownNameError         no such entry in a registry (also a LookupError)
|   `-- MissingArgumentError     a job lacks an argument that it cannot do without
|-- IncompatibleError            each choice is fine, the combination is not
|-- MissingDependencyError       an optional package is not installed (also an ImportError)
|-- ModelError                   the model, its loss or a batch breaks the contract of a step
|-- NonFiniteError               a loss or gradients are infinite or no number (also an ArithmeticError)
|-- DataError                    a data set or loader cannot serve what is asked of it
|-- PeerError                    another rank is gone, or did not come to an exchange in time
|-- MetricError                  a metric cannot be computed, or two give the same name
|-- StorageError                 a store refused, is full or did not answer in time (also an OSError)
`-- CheckpointError              a checkpoint could not be saved or loaded
    |-- CheckpointNotFoundError  there is none
    `-- CheckpointCorruptedError there are some, and every one of them is damaged

Stopped, a SystemExit, is no error: a signal has ended the job, and ends the process next.
Interrupted is one by Ctrl-C (also a KeyboardInterrupt).
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class StratrunError(Exception):
    """Root of every exception that stratrun raises on purpose."""


class ConfigError(StratrunError, ValueError):
    """A value that the user wrote is wrong."""


class UnknownNameError(ConfigError, LookupError):
    """A registry holds no entry of that name."""


class MissingArgumentError(ConfigError):
    """A job lacks an argument that it cannot do without."""


class IncompatibleError(StratrunError):
    """Each choice is valid alone, but not together."""


class MissingDependencyError(StratrunError, ImportError):
    """An optional package is needed and not installed."""


class ModelError(StratrunError):
    """The model, its loss or a batch breaks the contract of a step."""


class NonFiniteError(StratrunError, ArithmeticError):
    """A loss or gradients are infinite or no number, and the update that they are of was not made.

    Args:
        counted: Whether it was heard of only when its iteration had been counted as done.
    """

    def __init__(self, text: str = "", *, counted: bool = False) -> None:
        super().__init__(text)
        self.counted = counted


class DataError(StratrunError):
    """A data set or loader cannot serve what is asked of it."""


class MetricError(StratrunError):
    """A metric cannot be computed, or two give the same name."""


class PeerError(StratrunError):
    """Another rank is gone, or did not come to an exchange in time."""


class StorageError(StratrunError, OSError):
    """A store refused, is full or did not answer in time.

    `errno` is that of the error behind it, None where there was none. What merely is not there, or is
    there already, stays a FileNotFoundError or FileExistsError.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, int | None]]:
        return type(self), (str(self), self.errno)


class CheckpointError(StratrunError):
    """A checkpoint could not be saved or loaded."""


class CheckpointNotFoundError(CheckpointError):
    """There is no checkpoint where one was asked for."""


class CheckpointCorruptedError(CheckpointError):
    """There are checkpoints, and every one of them is damaged."""


class Stopped(SystemExit):
    """A signal has ended a job, which was left tidily. The exit code is 128 and the number of the signal.

    Not an `Exception`, so that the process ends unless someone wants it to go on.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(128 + signal)
        self.message = message
        self.signal = signal

    def __str__(self) -> str:
        return self.message


class Interrupted(Stopped, KeyboardInterrupt):
    """Ctrl-C has ended a job, left tidily. Whoever waits for KeyboardInterrupt, as pytest, gets it."""


_LISTED = 40


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, or list what is known.

    Returns ``did you mean 'x'?`` or ``known: a, b, c``, to follow a semicolon. Of very many, such as the
    files of a folder, those with the same first letter are listed first.
    """
    names = sorted(known)
    by_folded = {known_name.casefold(): known_name for known_name in names}
    close = get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.6)
    if close:
        return f"did you mean {by_folded[close[0]]!r}?"
    if not names:
        return "none are known"
    if len(names) > _LISTED:
        names.sort(key=lambda known_name: known_name[:1].casefold() != name[:1].casefold())
    return f"known: {shortened(names, _LISTED)}"


def shortened(names: Sequence[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
