"""What the files of a run tell, of all its starts together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from stratrun.checkpoint import layout
from stratrun.checkpoint.discovery import IN_WORK_DIR, committed_steps
from stratrun.checkpoint.opening import meta_of, open_manifest, read_json
from stratrun.errors import CheckpointError, ConfigError, nearest
from stratrun.storage import Folder

_COUNTERS = ("kind", "epoch", "iter", "step", "samples", "timestamp")
_NUMBERS = ("epoch", "timestamp", "hours")
_TEXTS = {"environment": "environment.txt", "model": "model.txt"}


@dataclass(slots=True)
class Series:
    """One value over a run. `hours` are those that the run was at work."""

    iters: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    hours: list[float] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    """None for what is no finite number."""


@dataclass(slots=True)
class History:
    """A run as its files tell it."""

    name: str
    url: str
    starts: list[str]
    series: dict[tuple[str, str], Series]
    """By kind (``train``, ``val``, ...) and name."""
    config: dict[str, Any]
    texts: dict[str, str]
    """The environment and the table of the model, where there are such files."""
    checkpoints: list[dict[str, Any]]
    hours: float


def read_history(work_dir: str, **storage_options: Any) -> History:
    """Read what a run has logged, in whichever starts.

    What a start had logged beyond the point from which a later one went on is left out: that part
    of the run was done again.

    Raises:
        ConfigError: there is no log of a run.
    """
    root = Folder(work_dir, **storage_options)
    runs = root.child("runs")
    starts = [name for name in runs.names() if _log_of(runs.child(name)) is not None]
    if not starts:
        raise ConfigError(f"{root} {_why_no_log(root)}")
    logs = [list(_rows(runs.child(name))) for name in starts]
    rows, hours = _joined(logs)
    newest = runs.child(starts[-1])
    return History(
        name=root.name,
        url=str(root),
        starts=starts,
        series=_series(rows),
        config=_config(newest),
        texts={what: text for what, file in _TEXTS.items() if (text := _text(newest, file)) is not None},
        checkpoints=_checkpoints(root.child(IN_WORK_DIR)),
        hours=hours,
    )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Values of a config by their dotted names, as they are written."""
    found: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{name}."))
        else:
            found[name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


def _log_of(folder: Folder) -> str | None:
    """The file of JSON lines in the folder of a start; the logger's own name for it first."""
    names = [name for name in folder.names() if name.endswith(".jsonl")]
    return "metrics.jsonl" if "metrics.jsonl" in names else next(iter(names), None)


def _rows(folder: Folder) -> Iterable[dict[str, Any]]:
    file = _log_of(folder)
    assert file is not None
    for line in folder.read_bytes(file).splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the last line of a process that was killed
        if isinstance(row, dict) and isinstance(row.get("iter"), int) and isinstance(row.get("kind"), str):
            yield {name: value for name, value in row.items() if name not in _NUMBERS or _is_finite(value)}


def _joined(logs: list[list[dict[str, Any]]]) -> tuple[list[dict[str, Any]], float]:
    """The rows of all starts as those of one, with the hours at work of each; and of all."""
    rows: list[dict[str, Any]] = []
    hours = 0.0
    for log in logs:
        again = _begun(log)
        if again is not None:
            at, kinds = again
            rows = [row for row in rows if (row["iter"], row["kind"] in kinds) < (at, True)]
        times = [row["timestamp"] for row in log if "timestamp" in row]
        begun = min(times, default=0.0)
        before = max((row["hours"] for row in rows), default=0.0) if again is not None else hours
        for row in log:
            row["hours"] = before + (row.get("timestamp", begun) - begun) / 3600
        hours = before + (max(times, default=0.0) - begun) / 3600
        rows += log
    return rows, hours


def _begun(log: Iterable[Mapping[str, Any]]) -> tuple[int, set[str]] | None:
    """The first iteration that a start has logged, and what kinds of rows of it; None where it trained none.

    A start may begin by validating where it goes on from: training had been logged there before.
    """
    firsts = [(row["iter"], row["kind"]) for row in log]
    if not any(kind == "train" for _, kind in firsts):
        return None
    at = min(firsts)[0]
    return at, {kind for iteration, kind in firsts if iteration == at}


def _series(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], Series]:
    found: dict[tuple[str, str], Series] = {}
    for row in rows:
        for name, value in row.items():
            if name in _COUNTERS or name == "hours":
                continue
            series = found.setdefault((row["kind"], name), Series())
            series.iters.append(row["iter"])
            series.epochs.append(row.get("epoch", 0))
            series.hours.append(round(row["hours"], 6))
            series.values.append(value if _is_finite(value) else None)
    return found


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a float can be."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _config(folder: Folder) -> dict[str, Any]:
    text = _text(folder, "config.yaml")
    try:
        parsed = yaml.safe_load(text) if text is not None else None
    except yaml.YAMLError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _text(folder: Folder, file: str) -> str | None:
    try:
        return folder.read_bytes(file).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def _checkpoints(folder: Folder) -> list[dict[str, Any]]:
    """Committed ones in the order of steps: their number, size, time and metrics, or why they are damaged."""
    found = []
    for step in committed_steps(folder):
        one = folder.child(layout.name_of(step))
        entry: dict[str, Any] = {"name": one.name, "step": step}
        try:
            manifest = open_manifest(one)
            meta = meta_of(read_json(one, layout.STATE, manifest))
        except CheckpointError as error:
            entry["damaged"] = str(error)
        else:
            entry["size"] = sum(digest.size for digest in manifest.files.values())
            entry["metrics"] = {
                k: v for k, v in (meta.get("metrics") or {}).items() if isinstance(v, int | float)
            }
            entry["epoch"] = meta.get("epoch")
        found.append(entry)
    return found


def _why_no_log(root: Folder) -> str:
    if not root.exists():
        if not root.parent.exists():
            return "does not exist, nor does the folder that it should be in; check the path"
        return f"does not exist; {nearest(root.name, root.parent.names())}"
    if "runs" not in root.names():
        return "is no work dir of a run: it has no folder runs; give the folder that was work_dir="
    return "holds no log of a run; the logger 'jsonl' (one of the default loggers) writes what a report needs"
