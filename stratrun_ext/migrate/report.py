"""What became of each setting."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stratrun.config.formats.yaml import write_value
from stratrun.config.plain import plain
from stratrun.config.redaction import redacted

Outcome = Literal["mapped", "changed", "nothing to do", "left for you"]
OUTCOMES: tuple[Outcome, ...] = ("left for you", "changed", "mapped", "nothing to do")
_MEANS = {
    "left for you": "what only you can do",
    "changed": "written down, and not quite the same",
    "mapped": "the same by another name, or as it was",
    "nothing to do": "what is so here by itself, or has no meaning here",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One setting of theirs."""

    outcome: Outcome
    theirs: str
    place: str = ""
    note: str = ""


@dataclass(slots=True)
class Report:
    """All settings, in the order in which they were looked at."""

    rows: list[Row] = field(default_factory=list)

    def add(self, outcome: Outcome, theirs: str, source: Any = None, note: str = "") -> None:
        """
        Args:
            source: The mapping that has it, which knows the line of the last step of `theirs`.
        """
        places: Mapping[Any, str] = getattr(source, "places", {})
        self.rows.append(Row(outcome, theirs, places.get(theirs.rpartition(".")[2], ""), note))

    def counted(self, outcome: Outcome) -> list[Row]:
        return [row for row in self.rows if row.outcome == outcome]

    def __str__(self) -> str:
        lines = []
        for outcome in OUTCOMES:
            rows = self.counted(outcome)
            if not rows:
                continue
            lines.append(f"{outcome} ({len(rows)}): {_MEANS[outcome]}")
            for row in rows:
                at = f"  ({row.place})" if row.place else ""
                lines.append(f"  {row.theirs}{': ' if row.note else ''}{row.note}{at}")
        return "\n".join(lines)


def shown(value: Any) -> str:
    """A value in a few words."""
    value = redacted(value)
    try:
        text = write_value(plain(value))
    except Exception:  # whatever objects of others are made of
        text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."
