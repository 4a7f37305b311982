"""What a training ended with: its last checkpoint, and what it has logged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stratrun.checkpoint import StoredCheckpoint
from stratrun.checkpoint.discovery import IN_WORK_DIR, committed_steps
from stratrun.checkpoint.layout import name_of
from stratrun.errors import CheckpointError
from stratrun.storage import Folder

# What no two runs have in common.
_CLOCKS = frozenset({"timestamp", "time", "data_time", "data_share", "eta", "memory"})
_NAMES = {
    "model": "weights",
    "optimizers": "optimizer state",
    "precision": "loss scale",
    "counters": "counters",
    "schedules": "schedules",
    "hooks": "hook states",
    "data": "data position",
}
_OWN_NAMES = {"loader": "data position", "records": "values not yet logged"}
RowKey = tuple[int, str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that is compared, in areas: by area, by name, the value."""

    step: int
    areas: dict[str, dict[str, Any]]
    rows: dict[RowKey, dict[str, Any]]
    """What was logged, by iteration, kind and names of the values."""


def outcome_of(work_dir: Path) -> Outcome:
    """Read the newest checkpoint, with the state of every rank, and the logs of all starts.

    Raises:
        CheckpointError: there is none.
    """
    folder = Folder(str(work_dir)).child(IN_WORK_DIR)
    steps = committed_steps(folder)
    if not steps:
        raise CheckpointError(f"no checkpoint in {folder}: the training has saved none")
    stored = StoredCheckpoint(folder.child(name_of(steps[-1])))
    ranks = stored.manifest.world_size
    loaded = [stored.read(rank, stored.division) for rank in range(ranks)]
    areas: dict[str, dict[str, Any]] = {name: {} for name in _NAMES.values()}
    for key, value in loaded[0].shared.items():
        areas.setdefault(_NAMES.get(key, key), {}).update(leaves(value))
    areas["metrics"] = dict(leaves(loaded[0].meta.get("metrics", {})))
    for rank, one in enumerate(loaded):
        for area, name, value in _own(one.own):
            called = f"{name} of rank {rank}" if ranks > 1 else name
            areas.setdefault(area, {})[called] = value
    return Outcome(steps[-1], {area: found for area, found in areas.items() if found}, _rows(work_dir))


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each tensor and plain value of nested state, with where it sits."""
    if isinstance(tree, Mapping):
        items: Any = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        yield path, tree
        return
    for key, value in items:
        yield from leaves(value, f"{path}.{key}" if path else str(key))


def _own(state: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """State of one rank: area, name and value. The state of a generator is one value."""
    for kind, value in {**state["rng"], **state["engine"]["rng"]}.items():
        yield "generators", kind, value
    for key, value in state["engine"].items():
        if key != "rng":
            yield from ((f"accumulation {key}", name, leaf) for name, leaf in leaves(value))
    for key, value in state.items():
        if key not in ("rng", "engine"):
            found = ((_OWN_NAMES.get(key, key), name, leaf) for name, leaf in leaves(value))
            yield from (one for one in found if not any(map(_is_clock, one[1].split("."))))


def _is_clock(name: str) -> bool:
    return name.removesuffix("_epoch") in _CLOCKS


def _rows(work_dir: Path) -> dict[RowKey, dict[str, Any]]:
    """Of what a resumed run has logged again, that counts."""
    rows: dict[RowKey, dict[str, Any]] = {}
    files = Path(work_dir, "runs").glob("*/metrics.jsonl")
    for file in sorted(files, key=lambda one: one.stat().st_mtime_ns):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = {name: value for name, value in json.loads(line).items() if not _is_clock(name)}
            rows[row["iter"], row["kind"], tuple(row)] = row
    return rows
