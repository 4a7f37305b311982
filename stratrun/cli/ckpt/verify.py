"""``stratrun ckpt verify``: whether every byte is as it was written."""

import json
import time
from argparse import ArgumentParser, Namespace
from typing import Any

from stratrun.cli.ckpt import text
from stratrun.cli.ckpt.entries import Entry
from stratrun.cli.ckpt.places import add_place, folder_and_entries, newest, told
from stratrun.errors import StratrunError
from stratrun.storage import Folder

_UNFINISHED = ("unfinished", "staged", "discarded")


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser, "a checkpoint, or all those of a work dir or a folder")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.epilog = "The exit code is 1 if any is damaged or cannot be read."


def run(given: Namespace) -> int:
    with told():
        folder, entries = folder_and_entries(given)
        if len(entries) == 1:
            newest(entries, folder)  # refuses an unfinished one
    results = []
    for entry in entries:
        result = _result(entry)
        results.append(result)
        if not given.json:
            print(_line(result, width=max(len(one.name) for one in entries)), flush=True)
    intact = [
        entry.folder.url for entry, one in zip(entries, results, strict=True) if one["state"] == "intact"
    ]
    found = intact[-1] if intact else None
    if given.json:
        print(json.dumps({"folder": folder.url, "checkpoints": results, "newest_intact": found}, indent=1))
    elif len(entries) > 1:
        print(f"newest intact: {found}" if found else "none is intact")
    return int(any(one["state"] in ("damaged", "unreadable") for one in results))


def check(folder: Folder) -> tuple[str | None, float]:
    """Read all of a checkpoint. Returns what is wrong with it, if anything, and the seconds it took.

    Raises:
        OSError: it could not be fetched, which says nothing of its state.
    """
    # Here, as they bring torch, which a help text can do without.
    from stratrun.checkpoint import StoredCheckpoint
    from stratrun.checkpoint.reader import damage

    start = time.perf_counter()
    try:
        StoredCheckpoint(folder).verify()
    except Exception as error:
        reason = damage(error)
        if reason is None:
            raise
        return reason, time.perf_counter() - start
    return None, time.perf_counter() - start


def _result(entry: Entry) -> dict[str, Any]:
    result: dict[str, Any] = {"name": entry.name, "step": entry.step, "size": entry.size}
    if entry.state in _UNFINISHED:
        return {**result, "state": entry.state, "reason": None}
    try:
        reason, seconds = check(entry.folder)
    except (StratrunError, OSError) as error:
        return {**result, "state": "unreadable", "reason": str(error)}
    if reason is not None:
        return {**result, "state": "damaged", "reason": reason}
    rate = entry.size / max(seconds, 1e-9)
    return {**result, "state": "intact", "reason": None, "seconds": seconds, "bytes_per_second": rate}


def _line(result: dict[str, Any], width: int) -> str:
    line = f"{result['name']:{width}}  {result['state']:10}"
    if result["state"] == "intact":
        rate = result["bytes_per_second"] / 1e9
        return f"{line}  {text.size(result['size']):>8}  {rate:.2f} GB/s"
    return f"{line}  {result['reason']}" if result["reason"] else line.rstrip()
