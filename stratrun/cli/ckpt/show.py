"""``stratrun ckpt show``: what a checkpoint holds."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from stratrun.cli.ckpt import text
from stratrun.cli.ckpt.entries import Entry
from stratrun.cli.ckpt.ls import saved
from stratrun.cli.ckpt.places import add_place, folder_and_entries, newest, told
from stratrun.errors import CheckpointCorruptedError, ConfigError, nearest

_SHOWN = 60
_COUNTERS = ("epoch", "iter", "updates", "samples")
# What has a line of its own above.
_TOLD = {*_COUNTERS, "metrics", "best", "torch", "python", "stratrun", "reasons", "config", "time", "step"}


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser, "a checkpoint, or a work dir for its newest one, or with /best")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.add_argument(
        "--tensors",
        metavar="PATTERN",
        help="list the tensors whose name has this in it, or fits it: 'model/*.bias'; '*' lists all",
    )


def run(given: Namespace) -> int:
    with told():
        folder, entries = folder_and_entries(given)
        entry = newest(entries, folder)
        if entry.state != "committed":
            raise CheckpointCorruptedError(f"checkpoint {entry.folder} is {entry.state}: {entry.reason}")
        tensors = _tensors(entry)
    chosen = [one for one in tensors if _fits(one["name"], given.tensors)]
    if given.tensors is not None and not chosen:
        names = [one["name"] for one in tensors]
        raise ConfigError(
            f"--tensors {given.tensors!r} fits none of {len(names)}; {_near(given.tensors, names)}"
        )
    if given.json:
        about = {**_about(entry), "meta": entry.meta, "parts": _parts(tensors), "tensors": chosen}
        print(json.dumps(finite(about), indent=1, default=str))
        return 0
    lines = _summary(entry) if given.tensors is None else []
    if given.tensors is None:
        lines += ["", *_part_lines(tensors), ""]
    most = len(chosen) if given.tensors is not None else _SHOWN
    print("\n".join([*lines, *_tensor_lines(chosen[:most])]))
    if len(chosen) > most:
        print(f"and {len(chosen) - most:,} more; --tensors '*' lists all of them")
    return 0


def finite(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if abs(value) != float("inf") and value == value else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _tensors(entry: Entry) -> list[dict[str, Any]]:
    """Name, part, dtype, shape and bytes of each tensor."""
    # Only now: it imports torch, which takes seconds.
    from stratrun.checkpoint import StoredCheckpoint

    tensors = StoredCheckpoint(entry.folder).describe()["tensors"]
    return [{"name": name, "part": name.partition("/")[0], **about} for name, about in tensors.items()]


def _fits(name: str, pattern: str | None) -> bool:
    return pattern is None or pattern in name or fnmatchcase(name, pattern)


def _near(pattern: str, names: Iterable[str]) -> str:
    known = set(names)
    near = nearest(pattern, known)
    parts = ", ".join(sorted({name.partition("/")[0] for name in known}))
    return near if near.startswith("did") else f"names begin with {parts}"


def _about(entry: Entry) -> dict[str, Any]:
    return {
        "url": entry.folder.url,
        "step": entry.step,
        "run_id": entry.run_id,
        "ranks": entry.ranks,
        "saved": saved(entry),
        "size": entry.size,
    }


def _summary(entry: Entry) -> list[str]:
    meta = entry.meta
    counters = ", ".join(f"{name} {meta[name]}" for name in _COUNTERS if name in meta)
    versions = ", ".join(f"{name} {meta[name]}" for name in ("stratrun", "torch", "python") if name in meta)
    by = f"{entry.ranks} rank{'s' if entry.ranks != 1 else ''}"
    rows = [
        ("run", str(entry.run_id)),
        ("at", f"step {entry.step}{f' ({counters})' if counters else ''}"),
        ("saved", f"{text.date(saved(entry))}, by {by}, {text.size(entry.size)}"),
        ("versions", versions),
        ("metrics", text.numbers(entry.metrics, most=100)),
        *(("best", line) for line in _best(meta.get("best"))),
        *(("why", str(reason)) for reason in meta.get("reasons") or ()),
        *((str(key), str(finite(meta[key]))) for key in meta if key not in _TOLD),
    ]
    width = max(len(label) for label, _ in rows)
    lines = [entry.folder.url]
    for number, (label, value) in enumerate(rows):
        if value:
            again = number and rows[number - 1][0] == label
            lines.append(f"  {'' if again else label:{width}}  {value}")
    config = meta.get("config")
    if config:
        lines += ["  config", *(f"    {line}" for line in str(config).splitlines())]
    return lines


def _best(rankings: Any) -> list[str]:
    if not isinstance(rankings, Mapping):
        return []
    return [
        f"{metric}: {', '.join(f'{text.number(value)} at step {step}' for value, step in ranking)}"
        for metric, ranking in rankings.items()
        if ranking
    ]


def _parts(tensors: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    parts: dict[str, dict[str, int]] = {}
    for one in tensors:
        total = parts.setdefault(one["part"], {"tensors": 0, "bytes": 0})
        total["tensors"] += 1
        total["bytes"] += one["bytes"]
    return parts


def _part_lines(tensors: list[dict[str, Any]]) -> list[str]:
    parts = _parts(tensors)
    rows = [(part, str(total["tensors"]), text.size(total["bytes"])) for part, total in sorted(parts.items())]
    total = sum(one["bytes"] for one in tensors)
    rows.append(("total", str(len(tensors)), text.size(total)))
    return text.table(("part", "tensors", "size"), rows, right="<>>")


def _tensor_lines(tensors: list[dict[str, Any]]) -> list[str]:
    rows = [
        (one["name"], one["dtype"], "x".join(map(str, one["shape"])) or "scalar", text.size(one["bytes"]))
        for one in sorted(tensors, key=lambda one: str(one["name"]))
    ]
    return text.table(("tensor", "dtype", "shape", "size"), rows, right="<<<>")
