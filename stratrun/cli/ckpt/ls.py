"""``stratrun ckpt ls``: which checkpoints there are, without reading a tensor."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import Any

from stratrun.cli.ckpt import text
from stratrun.cli.ckpt.entries import Entry, best_of
from stratrun.cli.ckpt.places import add_place, folder_and_entries, told
from stratrun.storage import Folder

_HEAD = ("step", "epoch", "iter", "saved", "size", "ranks", "metrics", "marks")


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser, "a work dir, a folder of checkpoints, a checkpoint, or any of them with /last or /best")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.add_argument(
        "--verify", action="store_true", help="check every byte, not only that marker, manifest and sizes fit"
    )


def run(given: Namespace) -> int:
    with told():
        folder, entries = folder_and_entries(given)
        if given.verify:
            entries = [_verified(entry) for entry in entries]
        marks = marks_of(folder, entries)
    if given.json:
        rows = [fields(entry, marks[entry.name]) for entry in entries]
        print(json.dumps({"folder": folder.url, "checkpoints": rows}, indent=1))
        return 0
    print(_title(folder, entries))
    lines = [_line(entry, marks[entry.name]) for entry in entries]
    print("\n".join(text.table(_HEAD, lines, right=">>><>>")))
    return 0


def marks_of(folder: Folder, entries: list[Entry]) -> dict[str, list[str]]:
    """What sets each entry apart: the names that it goes by, and what is wrong with it."""
    marks: dict[str, list[str]] = {entry.name: [] for entry in entries}
    committed = [entry for entry in entries if entry.state == "committed"]
    if committed and len(entries) > 1:
        marks[committed[-1].name].append("last")
    best = best_of(entries)
    for metric, steps in best.items():
        first = [entry for entry in committed if steps and entry.step == steps[0]]
        if first:
            marks[first[0].name].append("best" if len(best) == 1 else f"best:{metric}")
    for entry in entries:
        if entry.state != "committed":
            marks[entry.name].append(f"{entry.state}: {entry.reason}" if entry.reason else entry.state)
    return marks


def fields(entry: Entry, marks: list[str]) -> dict[str, Any]:
    """An entry for programs; what is not known is null."""
    return {
        "name": entry.name,
        "url": entry.folder.url,
        "step": entry.step,
        "epoch": entry.meta.get("epoch"),
        "iter": entry.meta.get("iter"),
        "saved": saved(entry),
        "size": entry.size,
        "ranks": entry.ranks,
        "run_id": entry.run_id,
        "metrics": {name: value if value == value else None for name, value in entry.metrics.items()},
        "state": entry.state,
        "reason": entry.reason or None,
        "marks": [mark for mark in marks if mark.partition(":")[0] in ("last", "best")],
    }


def saved(entry: Entry) -> float | None:
    """When, in seconds since 1970: as the run noted it, or else as the store has it."""
    noted = entry.meta.get("time")
    return float(noted) if isinstance(noted, int | float) else entry.changed


def _line(entry: Entry, marks: list[str]) -> tuple[str, ...]:
    known = (str(entry.meta.get(key, "-")) for key in ("epoch", "iter"))
    ranks = "-" if entry.ranks is None else str(entry.ranks)
    when, large = text.date(saved(entry)), text.size(entry.size)
    return (str(entry.step), *known, when, large, ranks, text.numbers(entry.metrics), ", ".join(marks))


def _title(folder: Folder, entries: list[Entry]) -> str:
    runs = sorted({entry.run_id for entry in entries if entry.run_id is not None})
    of = f", run{'s' if len(runs) > 1 else ''} {', '.join(runs[:4])}" if runs else ""
    return f"{folder}{of}"


def _verified(entry: Entry) -> Entry:
    if entry.state != "committed":
        return entry
    # Only now: reading tensors needs torch, which takes seconds to import.
    from stratrun.cli.ckpt.verify import check

    reason, _ = check(entry.folder)
    return entry if reason is None else replace(entry, state="damaged", reason=reason)
