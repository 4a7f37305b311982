"""Going through a mapping of theirs key by key, so that none is passed over."""

from collections.abc import Callable, Mapping
from typing import Any

from stratrun_ext.migrate.report import Outcome, Report


class Taking:
    """The keys of a mapping, each to be taken once, and the report of what became of it."""

    def __init__(self, source: Mapping[str, Any], where: str, report: Report) -> None:
        self.source: Mapping[str, Any] = source
        self.where: str = where
        self.report: Report = report
        self._left = list(source)

    def __contains__(self, key: str) -> bool:
        return key in self.source

    def take(self, key: str, default: Any = None) -> Any:
        """A value that is told of by the caller."""
        if key in self._left:
            self._left.remove(key)
        return self.source.get(key, default)

    def tell(self, outcome: Outcome, key: str, note: str = "") -> None:
        where = f"{self.where}.{key}" if self.where else key
        self.report.add(outcome, where, self.source, note)

    def keep(self, key: str, into: dict[str, Any], name: str | None = None, note: str = "") -> None:
        """Write a value as it is, under `name` if that is another here."""
        if key not in self._left:
            return
        into[name or key] = self.take(key)
        self.tell("mapped", key, note or (f"is {name}" if name else ""))

    def drop(self, key: str, note: str, when: Callable[[Any], bool] = lambda value: True) -> None:
        """Leave out what has no meaning here, if it has a value for which that is so."""
        if key in self._left and when(self.source[key]):
            self.take(key)
            self.tell("nothing to do", key, note)

    def leave(self, key: str, note: str) -> None:
        if key in self._left:
            self.take(key)
            self.tell("left for you", key, note)

    def end(self, note: str) -> None:
        """Say of each key that was not taken that it is left out."""
        for key in list(self._left):
            self.leave(key, note)


def off(value: Any) -> bool:
    """Whether a value switches nothing on."""
    return value is None or value is False or value == {} or value == []
