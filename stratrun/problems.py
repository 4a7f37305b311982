"""Several mistakes at once: a check that does not end with the first.

A check raises at what is wrong. Who wants to hear of all of it asks within `gathering`: there each `part` of
a check keeps its error for the list, and the check goes on behind it. Elsewhere a part changes nothing, so
that one set of rules serves both.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any

from stratrun.errors import StratrunError


@dataclass(frozen=True, slots=True)
class Problem:
    """What a part of a check found wrong."""

    error: StratrunError
    key: str
    """The value of the config that was looked at, by its dotted name; empty for the config as a whole."""


class Refused(Enum):
    """Stands where a value was taken out that must not be used, not even to look for further problems."""

    NAME = "a name that would import code"


class KnownProblem(StratrunError):
    """Raised where a check cannot go on for want of what a part of it has found wrong. It adds nothing."""


class Gathering:
    """The problems so far, each once, however many checks come upon it."""

    def __init__(self) -> None:
        self._found: dict[str, Problem] = {}
        self.keys: list[str] = []

    def add(self, error: StratrunError) -> None:
        key, text = self.keys[-1] if self.keys else "", str(error)
        if text not in self._found or not self._found[text].key:
            self._found[text] = Problem(error, key)

    def under(self, *keys: str) -> list[Problem]:
        """Those of these values, and of what is in them."""
        return [one for one in self.found if one.key.partition(".")[0] in keys]

    def has(self, key: str) -> bool:
        """Whether something is wrong with this value itself."""
        return any(one.key == key for one in self.found)

    def within(self, key: str) -> bool:
        """Whether something is wrong with this value, or in it."""
        return any(f"{one.key}.".startswith(f"{key}.") for one in self.found)

    @property
    def found(self) -> list[Problem]:
        return list(self._found.values())


_NOW: ContextVar[Gathering | None] = ContextVar("gathering", default=None)


@contextmanager
def gathering() -> Iterator[Gathering]:
    """Within the block, mistakes are gathered where they would be raised by one of several parts."""
    before, made = _NOW.get(), Gathering()
    _NOW.set(made)
    try:
        with part():
            yield made
    finally:
        _NOW.set(before)


class part:
    """One of several parts of a check, each of which makes sense without the others.

    Args:
        key: The dotted name of the value that it looks at; that of the part around it, if empty.
    """

    __slots__ = ("_gathering", "_key")

    def __init__(self, key: str = "") -> None:
        self._key = key
        self._gathering: Gathering | None = None

    def __enter__(self) -> None:
        self._gathering = _NOW.get()
        if self._gathering is not None:
            keys = self._gathering.keys
            keys.append(self._key or (keys[-1] if keys else ""))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._gathering is None:
            return False
        kept = isinstance(error, StratrunError)
        if isinstance(error, StratrunError) and not isinstance(error, KnownProblem):
            self._gathering.add(error)
        self._gathering.keys.pop()
        return kept


def without(spec: Any, keys: Iterable[str]) -> dict[str, Any]:
    """What is left of a dict once the keys that were refused are out of it."""
    refused = set(keys)
    return {key: value for key, value in dict(spec).items() if key not in refused}
