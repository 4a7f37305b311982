"""Where the user points to, and what lies there. Nothing here needs torch: a listing comes at once."""

import json
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stratrun.checkpoint.discovery import IN_WORK_DIR
from stratrun.cli.ckpt.entries import Entry, entries_in, entry_of, kind_of
from stratrun.errors import CheckpointError, CheckpointNotFoundError, ConfigError, StratrunError, nearest
from stratrun.storage import Folder

_NAMED = re.compile(r"(?:.*/)?(last|best|best:.*)/*")


def add_place(parser: ArgumentParser, what: str) -> None:
    """Take PATH, and how to reach it if it is a URL."""
    parser.add_argument("path", metavar="PATH", help=f"{what}; a path or any URL that fsspec knows")
    parser.add_argument(
        "--storage-option",
        dest="options",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="for the file system of a URL, such as profile=research; may be given several times",
    )


def options_of(given: Namespace) -> dict[str, Any]:
    """The storage options; values that are JSON, such as true or 5, are taken as such."""
    options: dict[str, Any] = {}
    for text in given.options:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError("--storage-option is given as KEY=VALUE, such as profile=research")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


@contextmanager
def told() -> Iterator[None]:
    """Turn what a file system refuses into an error of ours, which is a line and no traceback."""
    try:
        yield
    except (StratrunError, BrokenPipeError):
        raise
    except OSError as error:
        raise CheckpointError(f"{type(error).__name__}: {error}") from error


def is_single(given: Namespace) -> bool:
    """Whether PATH is about one checkpoint by its form, and not about all in a folder."""
    return (
        bool(_NAMED.fullmatch(given.path)) or kind_of(given.path.rstrip("/").rpartition("/")[2]) is not None
    )


def folder_and_entries(given: Namespace) -> tuple[Folder, list[Entry]]:
    """The folder of checkpoints that PATH leads to, and what of it is meant, oldest first.

    Raises:
        CheckpointNotFoundError: nothing is there; names what is nearby.
    """
    options = options_of(given)
    start = Folder(given.path, **options)
    if _NAMED.fullmatch(given.path) and not start.exists():
        # Only now: names are resolved by what checkpoints say of each other.
        from stratrun.checkpoint.selection import locate

        start = locate(given.path, **options)
    names = start.names()
    if "COMMITTED" in names or kind_of(start.name) is not None:
        if not names:
            raise CheckpointNotFoundError(_missing(start))
        return start.parent, [entry_of(start.parent, start.name)]
    for folder in (start, start.child(IN_WORK_DIR)) if IN_WORK_DIR in names else (start,):
        found = entries_in(folder)
        if found:
            return folder, found
    raise CheckpointNotFoundError(_missing(start))


def newest(entries: list[Entry], folder: Folder) -> Entry:
    """The newest checkpoint of those meant, or the only one.

    Raises:
        CheckpointNotFoundError: none is finished.
    """
    finished = [entry for entry in entries if entry.state not in ("unfinished", "staged", "discarded")]
    if not finished:
        what = f"{entries[0].name} is {entries[0].state}" if len(entries) == 1 else "none is finished"
        raise CheckpointNotFoundError(f"no checkpoint in {folder}: {what}; {_other(entries, folder)}")
    return finished[-1]


def _other(entries: list[Entry], folder: Folder) -> str:
    finished = [entry.name for entry in entries_in(folder) if entry.state == "committed"]
    return f"there are {', '.join(finished[-5:])}" if finished else "no other is there either"


def _missing(start: Folder) -> str:
    """Say that there is no checkpoint, and what may have been meant."""
    if start.exists():
        if start.is_file():
            return f"{start} is a file; checkpoints are folders, in the work dir of a run"
        runs = [name for name in start.names()[:100] if start.child(name).exists(IN_WORK_DIR)]
        here = f"; there are runs in it: {', '.join(runs[:8])}" if runs else ""
        return f"no checkpoint in {start}{here}"
    beside = start.parent.names()
    if kind_of(start.name) is not None:
        there = [name for name in beside if kind_of(name) == "step"]
        known = f"there are {', '.join(there[-5:])}" if there else f"there is none in {start.parent}"
        return f"checkpoint {start} does not exist; {known}"
    if not beside:
        return f"{start} does not exist, nor does the folder that it should be in; check the path"
    return f"{start} does not exist; {nearest(start.name, beside)}"
