"""What a folder of checkpoints holds, by names, sizes, markers and manifests; no tensor is read."""

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from stratrun.checkpoint import layout
from stratrun.checkpoint.layout import Manifest
from stratrun.errors import CheckpointCorruptedError, CheckpointError, ConfigError
from stratrun.storage import Folder

IN_WORK_DIR = "checkpoints"
_BESIDE = re.compile(r"\.(staging|trash)-(step-\d+)(?:\.([\w-]+))?.*")
_AT_ONCE = 8
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
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda name: entry_of(root, name), names))
    return sorted(found, key=lambda entry: (entry.step, entry.state != "committed", entry.name))


def entry_of(root: Folder, name: str) -> Entry:
    folder = root.child(name)
    sizes = folder.sizes()
    match = _BESIDE.fullmatch(name)
    step = layout.step_of(match[2] if match else name)
    entry = Entry(folder, step or 0, "committed", size=sum(sizes.values()), changed=changed(folder))
    if match is not None:
        return replace(entry, state="staged" if match[1] == "staging" else "discarded", run_id=match[3])
    if layout.COMMITTED not in sizes:
        return replace(entry, state="unfinished")
    return _looked_at(entry, sizes)


def best_of(entries: list[Entry]) -> dict[str, list[int]]:
    """For each metric that was watched the steps with its best values, best first, as far as they are there.

    The newest checkpoint knows them.
    """
    whole = [entry for entry in entries if entry.state == "committed"]
    if not whole:
        return {}
    there = {entry.step for entry in whole}
    rankings = whole[-1].meta.get("best")
    if not isinstance(rankings, Mapping):
        return {}
    return {
        str(metric): [pair[1] for pair in ranking if isinstance(pair, list | tuple) and pair[1:2][0] in there]
        for metric, ranking in rankings.items()
        if isinstance(ranking, list)
    }


def changed(folder: Folder) -> float | None:
    """When a file right in the folder was last written, in seconds since 1970, if the store tells."""
    times = [_seconds(info) for info in folder._children().values()]
    return max((time for time in times if time is not None), default=None)


def _seconds(info: Mapping[str, Any]) -> float | None:
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


def _looked_at(entry: Entry, sizes: Mapping[str, int]) -> Entry:
    """The entry with what manifest and state say of it, and whether they belong together."""
    try:
        manifest = _manifest(entry.folder, sizes)
        entry = replace(entry, run_id=manifest.run_id, ranks=manifest.world_size)
        if manifest.step != entry.step:
            raise CheckpointCorruptedError(f"{entry.name} holds step {manifest.step}")
        for file, digest in manifest.files.items():
            if sizes.get(file) != digest.size:
                found = f"has {sizes[file]} bytes, not {digest.size}" if file in sizes else "is missing"
                raise CheckpointCorruptedError(f"{file} {found}")
        return replace(entry, meta=_meta(entry.folder, manifest))
    except (CheckpointCorruptedError, FileNotFoundError, ConfigError) as error:
        return replace(entry, state="damaged", reason=str(error))
    except CheckpointError as error:
        return replace(entry, state="unreadable", reason=str(error))


def _manifest(folder: Folder, sizes: Mapping[str, int]) -> Manifest:
    if layout.MANIFEST not in sizes:
        raise CheckpointCorruptedError(f"{layout.MANIFEST} is missing")
    data = folder.read_bytes(layout.MANIFEST, limit=layout.MANIFEST_LIMIT)
    mark = layout.marker(data)
    if folder.read_bytes(layout.COMMITTED, limit=len(mark)) != mark:
        raise CheckpointCorruptedError(f"{layout.COMMITTED} and {layout.MANIFEST} do not belong together")
    return Manifest.parse(data)


def _meta(folder: Folder, manifest: Manifest) -> dict[str, Any]:
    if manifest.files[layout.STATE].size > _STATE_LIMIT:
        return {}
    data = folder.read_bytes(layout.STATE, limit=_STATE_LIMIT)
    if layout.digest_of(data) != manifest.files[layout.STATE]:
        raise CheckpointCorruptedError(f"{layout.STATE} is damaged: its digest does not match")
    meta = _plain(layout.parse_json(data, layout.STATE).get("meta"))
    return meta if isinstance(meta, dict) else {}


def _plain(value: Any) -> Any:
    """A value of `tree.flatten` that holds no tensor, near enough to be shown."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if tag == "$float":
        return float(value[tag])
    if tag in ("$tuple", "$size"):
        return _plain(value[tag])
    if tag in ("$dict", "$ordered", "$counter"):
        return {str(_plain(key)): _plain(item) for key, item in value[tag]}
    return (
        json.dumps(value[tag]) if tag.startswith("$") else {key: _plain(item) for key, item in value.items()}
    )
