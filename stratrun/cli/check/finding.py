"""What is said of one problem: where it is, what is wrong, and what would mend it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stratrun.problems import Problem

_PLACE = re.compile(r" \(((?:[^()]|\([^()]*\))*:\d+|override '.*')\)$", re.S)
_BEFORE = re.compile(r"(override '.*?'|\S+:\d+): ")
_NEAR = re.compile(r"did you mean '([^']*)'\?")


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of a config, for readers and for programs."""

    file: str | None
    line: int | None
    place: str
    """``file:line``, or the override that set the value."""
    key: str
    kind: str
    message: str
    reason: str
    mend: str
    near: str | None
    """The name that was probably meant."""

    @classmethod
    def of(cls, problem: Problem, config: Mapping[str, Any], path: str) -> "Finding":
        text = str(problem.error)
        # A note says what was being built, which the key does; and where that was named.
        notes = [_PLACE.search(note) for note in getattr(problem.error, "__notes__", ())]
        if placed := _PLACE.search(text):
            text, place = text[: placed.start()], placed[1]
        elif before := _BEFORE.match(text):
            text, place = text[before.end() :], before[1]
        else:
            place = place_of(config, problem.key, text) or next((one[1] for one in notes if one), path)
        if problem.key.partition(".")[0] not in text:
            text = f"{problem.key}: {text}"
        file, _, line = place.rpartition(":")
        numbered = line.isdecimal() and not place.startswith("override ")
        reason, _, mend = text.partition("; ")
        near = _NEAR.search(text)
        return cls(
            file=file if numbered else None if place.startswith("override ") else place,
            line=int(line) if numbered else None,
            place=place,
            key=problem.key,
            kind=type(problem.error).__name__,
            message=text,
            reason=reason,
            mend=mend,
            near=near[1] if near else None,
        )

    @property
    def order(self) -> tuple[Any, ...]:
        """As the problems are in the files; overrides last."""
        return self.file is None, self.file or "", self.line or 0, self.message


def place_of(config: Mapping[str, Any], key: str, text: str = "") -> str | None:
    """Where a value was written: the innermost that its dotted name leads to, or that a message names."""
    node: Any = config
    place: str | None = None
    for name in key.split(".") if key else ():
        if isinstance(node, Mapping) and name in node:
            place = getattr(node, "places", {}).get(name, place)
            node = node[name]
        elif isinstance(node, list | tuple) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            break
    return _named_in(node, text) or place


def _named_in(node: Any, text: str) -> str | None:
    """The place of a key of a mapping that a message speaks of first."""
    places: Mapping[str, str] = getattr(node, "places", {})
    # The words before the value of a key, or the key in quotes, as our messages have them.
    spoken = {
        found.start(): key
        for key in places
        if (found := re.search(rf"(?<![\w.]){re.escape(str(key))}=|'{re.escape(str(key))}'", text))
    }
    return places[spoken[min(spoken)]] if spoken else None
