"""What a logger is given: numbers, and how far the run was when they were true."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from torch import Tensor

from stratrun.errors import ConfigError
from stratrun.state import TrainState

PROGRESS = "progress"
"""Kind of the records that only move a progress display: no logger writes them down."""


PARAMETERS = "parameters"
"""Kind of the records with a value or more for each parameter, which are for files, not for a terminal."""


@dataclass(frozen=True, slots=True)
class Record:
    """Values of one moment. Counters are those of finished work."""

    kind: str
    """``train``, ``val``, ``test``, or a word of the caller's own."""
    values: dict[str, float]
    epoch: int = 0
    iter: int = 0
    step: int = 0
    samples: int = 0
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""

    @classmethod
    def of(cls, kind: str, values: Mapping[str, float], state: TrainState) -> "Record":
        return cls(kind, dict(values), state.epoch, state.iter, state.step, state.samples)

    def flat(self) -> dict[str, Any]:
        """Counters and values in one row, as files hold it.

        A value that has the name of a counter keeps its number under that name and an underscore.
        """
        row: dict[str, Any] = {
            "kind": self.kind,
            "epoch": self.epoch,
            "iter": self.iter,
            "step": self.step,
            "samples": self.samples,
            "timestamp": round(self.time, 3),
        }
        for name, value in self.values.items():
            row[f"{name}_" if name in row else name] = value
        return row


def is_number(value: object) -> bool:
    """Whether a value can be logged: one real number, on the host or on a device."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, Real)


def check_numbers(values: Mapping[str, Any]) -> None:
    """Refuse what is no single number, reading none of them.

    Raises:
        ConfigError: naming the first value that cannot be logged.
    """
    for name, value in values.items():
        if not is_number(value):
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]
            raise ConfigError(
                f"log({{{name!r}: ...}}): {what} is not a single number; "
                "log a number or a tensor with one element, such as its mean"
            )
