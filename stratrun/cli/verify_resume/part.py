"""What a child process of ``verify-resume`` is to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

VARIABLE = "STRATRUN_VERIFY_RESUME"
Role = Literal["whole", "broken", "resumed"]


@dataclass(frozen=True, slots=True)
class Part:
    """One of the trainings, and how parent and child tell each other of it: by the environment, and files."""

    role: Role
    folder: str
    at: int | None
    iters: int

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Part | None:
        """None in a process that no other has started for a part."""
        text = environ.get(VARIABLE)
        return None if text is None else cls(**json.loads(text))

    def to_environ(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}

    @property
    def plan(self) -> Path:
        """Written by the uninterrupted training, which knows how long it is."""
        return Path(self.folder, "verify-plan.json")

    @property
    def resumed_from(self) -> Path:
        """Written once a checkpoint has been loaded: the iteration."""
        return Path(self.folder, "verify-resumed-from")

    @property
    def hidden(self) -> Path:
        """What hooks, model and data hold at the end beside the state that is saved."""
        return Path(self.folder, f"verify-hidden-{self.role}.json")

    @property
    def processes(self) -> Path:
        """One file for each process that trains, called by its id."""
        return Path(self.folder, "verify-processes")
