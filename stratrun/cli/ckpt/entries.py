"""What a folder of checkpoints holds, by names, sizes, markers and manifests; no tensor is read."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from stratrun.checkpoint import layout
from stratrun.checkpoint.discovery import AT_ONCE, best_steps
from stratrun.checkpoint.opening import meta_of, open_manifest, read_json
from stratrun.errors import CheckpointCorruptedError, CheckpointError, ConfigError
from stratrun.storage import Folder

_BESIDE = re.compile(r"\.(staging|trash)-(step-\d+)(?:\.([\w-]+))?.*")
# More than states are large; beyond it a listing goes without metrics.
_STATE_LIMIT = 64 << 20

State = Literal["committed", "damaged", "unreadable", "unfinished", "staged", "discarded"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One folder, finished or not."""

    folder: Folder
    step: int
    state: State
    reason: str = ""
    """Why it is damaged or unreadable."""
    size: int = 0
    run_id: str | None = None
    ranks: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    changed: float | None = None
    """When it was last written to, in seconds since 1970; None where the store does not tell."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def metrics(self) -> dict[str, float]:
        found = self.meta.get("metrics")
        return dict(found) if isinstance(found, Mapping) else {}


def kind_of(name: str) -> Literal["step", "staging", "trash"] | None:
    """What a folder is by its name; None for one that has nothing to do with checkpoints."""
    if layout.step_of(name) is not None:
        return "step"
    match = _BESIDE.fullmatch(name)
    return None if match is None else "staging" if match[1] == "staging" else "trash"


def entries_in(root: Folder) -> list[Entry]:
    """All that is there, in the order of steps, the unfinished ones of a step last."""
    names = [name for name in root.names() if kind_of(name) is not None]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda name: entry_of(root, name), names))
    return sorted(found, key=lambda entry: (entry.step, entry.state != "committed", entry.name))


def entry_of(root: Folder, name: str) -> Entry:
    folder = root.child(name)
    sizes = folder.sizes()
    match = _BESIDE.fullmatch(name)
    step = layout.step_of(match[2] if match else name)
    entry = Entry(folder, step or 0, "committed", size=sum(sizes.values()), changed=folder.changed())
    if match is not None:
        return replace(entry, state="staged" if match[1] == "staging" else "discarded", run_id=match[3])
    if layout.COMMITTED not in sizes:
        return replace(entry, state="unfinished")
    return _looked_at(entry)


def best_of(entries: list[Entry]) -> dict[str, list[int]]:
    """For each metric that was watched the steps with its best values, best first, as far as they are there.

    The newest checkpoint knows them.
    """
    whole = [entry for entry in entries if entry.state == "committed"]
    if not whole:
        return {}
    there = {entry.step for entry in whole}
    rankings = best_steps(whole[-1].meta)
    return {metric: [step for step in steps if step in there] for metric, steps in rankings.items()}


def _looked_at(entry: Entry) -> Entry:
    """The entry with what manifest and state say of it, and whether they belong together."""
    try:
        manifest = open_manifest(entry.folder)
        entry = replace(entry, run_id=manifest.run_id, ranks=manifest.world_size)
        if manifest.files[layout.STATE].size > _STATE_LIMIT:
            return entry
        return replace(entry, meta=meta_of(read_json(entry.folder, layout.STATE, manifest)))
    except (CheckpointCorruptedError, FileNotFoundError, ConfigError) as error:
        return replace(entry, state="damaged", reason=str(error))
    except CheckpointError as error:
        return replace(entry, state="unreadable", reason=str(error))
