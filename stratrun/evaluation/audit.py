"""Noticing a metric that counts in places which no other rank gets to see."""

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor

from stratrun.errors import MetricError


class Audit:
    """Compares the attributes of metrics before and after an evaluation.

    A count kept outside the declared states is right in one process and silently wrong over several ranks.
    """

    def __init__(self) -> None:
        self._before: list[tuple[object, dict[str, Any], dict[str, Any]]] = []

    def begin(self, metrics: Iterable[tuple[object, Collection[str]]]) -> None:
        """Look at metrics, each given with the attributes that may change."""
        # The attributes themselves are held as well: the identity of a freed tensor may be reused.
        self._before = [(m, dict(vars(m)), _counts(m, allowed)) for m, allowed in metrics]

    def end(self) -> None:
        """
        Raises:
            MetricError: something changed that the ranks cannot put together.
        """
        for metric, _, before in self._before:
            after = _counts(metric, ())
            changed = [repr(name) for name, count in before.items() if name in after and after[name] != count]
            if changed:
                raise MetricError(
                    f"{type(metric).__name__} counts in {', '.join(changed)}, which no add_state() declares: "
                    "what several ranks count there cannot be put together; declare it as a state, or "
                    "evaluate in one process"
                )


def _counts(metric: object, allowed: Collection[str]) -> dict[str, Any]:
    """For each attribute that can count something, a value that tells whether it has."""
    attributes = {**vars(metric), **getattr(metric, "_buffers", {})}
    counts = {name: _count(value) for name, value in attributes.items() if name not in allowed}
    return {name: count for name, count in counts.items() if count is not None}


def _count(value: Any) -> Any:
    if isinstance(value, Tensor):
        # An inference tensor has no version; nothing changes it in place outside inference mode.
        return id(value), 0 if value.is_inference() else value._version
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return len(value) if isinstance(value, list | dict | set) else None
