"""The report, as text and as plain values."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stratrun.environment import accelerators, faults, machine, packages, variables

_PARTS: Mapping[str, Callable[[], Mapping[str, Any]]] = {
    "stratrun": packages.stratrun,
    "python": machine.python,
    "machine": machine.machine,
    "torch": accelerators.torch_build,
    "accelerators": accelerators.accelerators,
    "packages": packages.installed,
    "variables": variables.variables,
}


@dataclass(frozen=True)
class EnvironmentReport:
    """What was found, secrets redacted. ``str(report)`` is for readers.

    Attributes:
        parts: Plain values by the name of the part, and then of the value. Sizes are in GiB.
        faults: What is known to make trouble, and what to do about it; a sentence each.
    """

    parts: dict[str, dict[str, Any]]
    faults: list[str]

    def to_json(self) -> str:
        return json.dumps({**self.parts, "faults": self.faults}, indent=2)

    def __str__(self) -> str:
        lines: list[str] = []
        for name, values in self.parts.items():
            width = max(map(len, values), default=0)
            lines += [name, *(f"  {key:{width}}  {_shown(value)}" for key, value in values.items()), ""]
        lines += ["faults", *(f"  {fault}" for fault in self.faults or ["none known"])]
        return "\n".join(lines)


def environment_report() -> EnvironmentReport:
    """What this process would train on. A part that cannot be looked at says why, and is no error."""
    parts = {name: _looked_at(look) for name, look in _PARTS.items()}
    return EnvironmentReport(parts, faults.faults(parts))


def _looked_at(look: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    try:
        return dict(look())
    except Exception as error:
        # Drivers, containers and half-installed packages fail in ways that nobody foresees.
        return {"unknown": f"{type(error).__name__}: {error}"}


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return {None: "none", True: "yes", False: "no"}.get(value, str(value)) if _is_word(value) else str(value)


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)
