"""Checkpoints by name: `last`, `best`, and `best:accuracy` where several metrics are watched.

A name is resolved from what the folder holds. There is no file that points anywhere: the newest
checkpoint that is intact says which were the best up to it.
"""

import os
import re
from difflib import get_close_matches
from typing import Any

from stratrun.checkpoint import layout
from stratrun.checkpoint.discovery import IN_WORK_DIR, best_steps, look_into
from stratrun.checkpoint.reader import StoredCheckpoint, damage
from stratrun.errors import CheckpointCorruptedError, CheckpointNotFoundError, nearest
from stratrun.storage import Folder

LAST = "last"
BEST = "best"
# The greedy folder leaves the last such part to be the name; that of a metric may hold slashes.
_NAMED = re.compile(r"(?:(?P<folder>.*)/)?(?P<name>last|best|best:.*)", re.DOTALL)
_WORDS = {"latest": LAST, "newest": LAST, "last": LAST, "best": BEST}


def split_name(url: str | os.PathLike[str]) -> tuple[str, str | None]:
    """What a user wrote, as the folder and the name of a checkpoint in it.

    ``"work_dirs/x/best"`` is ``("work_dirs/x", "best")``; a bare name has the folder ``""``, which
    stands for the run's work_dir; anything else has no name. Nothing is looked up: a folder that
    is really called `best` is for the caller to find first, as `locate` does.
    """
    text = os.fspath(url)
    match = _NAMED.fullmatch(text.rstrip("/"))
    if match is None:
        return text, None
    folder = match["folder"]
    return ("" if folder is None else folder or "/"), match["name"]


def locate(url: str | os.PathLike[str], work_dir: str | os.PathLike[str] = "", **options: Any) -> Folder:
    """The folder or file that a user means, by a path, a URL or a name.

    Args:
        work_dir: Where bare names are looked up.
        options: Go to the fsspec file system.

    Raises:
        CheckpointNotFoundError: it is a name that stands for nothing there; says why.
    """
    folder, name = split_name(url)
    if name is None:
        return Folder(url, **options)
    if folder:
        named = Folder(url, **options)
        if named.exists():
            return named
    return resolve(Folder(folder or os.fspath(work_dir) or ".", **options), name)


def resolve(folder: Folder, name: str) -> Folder:
    """The checkpoint that a name stands for.

    Args:
        folder: A work_dir, or the folder of its checkpoints.

    Raises:
        CheckpointNotFoundError: it stands for none; says why.
    """
    return folder.child(path_of(folder, name))


def path_of(folder: Folder, name: str) -> str:
    """`resolve`, as a path below `folder`, for the one that looks on behalf of others."""
    kind, _, metric = name.partition(":")
    if kind not in (LAST, BEST) or (kind == LAST and metric):
        meant = near(name)
        mend = f"did you mean {meant!r}?" if meant else "those are last, best and best:METRIC"
        raise CheckpointNotFoundError(f"{name!r} is no name of a checkpoint; {mend}")
    path, steps = look_into(folder)
    if steps is None:
        raise CheckpointNotFoundError(
            f"{folder} is itself a checkpoint, so it has no {name!r}; leave the name out, or the step"
        )
    at = folder.child(path) if path else folder
    step = steps[-1] if kind == LAST else _best(at, steps, metric)
    return f"{path}/{layout.name_of(step)}".lstrip("/")


def near(name: str) -> str | None:
    """The name of a checkpoint that was probably meant by something like it."""
    word, colon, metric = name.casefold().partition(":")
    close = get_close_matches(word, _WORDS, n=1, cutoff=0.7)
    if not close:
        return None
    meant = _WORDS[close[0]]
    return f"{meant}:{name.partition(':')[2]}" if colon and metric and meant == BEST else meant


def _best(folder: Folder, steps: list[int], metric: str) -> int:
    """The step with the best value of a metric, of those that are still there."""
    rankings = _rankings(folder, steps)
    if not rankings:
        where = folder.parent if folder.name == IN_WORK_DIR else folder
        raise CheckpointNotFoundError(
            f"{where} has no 'best', as no metric was watched; have one watched with "
            "default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best='accuracy')), or take 'last'"
        )
    if not metric and len(rankings) > 1:
        raise CheckpointNotFoundError(
            f"{len(rankings)} metrics were watched in {folder}, each with a best of its own; "
            f"say which: {', '.join(f'{BEST}:{one}' for one in rankings)}"
        )
    metric = metric or next(iter(rankings))
    if metric not in rankings:
        raise CheckpointNotFoundError(
            f"{BEST}:{metric}: that metric was not watched in {folder}; {nearest(metric, rankings)}"
        )
    there = set(steps)
    found = [step for step in rankings[metric] if step in there]
    if found:
        return found[0]
    gone = ", ".join(map(str, rankings[metric]))
    state = f"those of steps {gone} are gone" if gone else "no finite value of it was measured yet"
    raise CheckpointNotFoundError(
        f"{folder} has no checkpoint with the best {metric!r}: {state}; take 'last'"
    )


def _rankings(folder: Folder, steps: list[int]) -> dict[str, list[int]]:
    """For each metric that was watched the steps with its best values, best first."""
    reasons = []
    for step in reversed(steps):
        try:
            return best_steps(StoredCheckpoint(folder.child(layout.name_of(step))).meta)
        except Exception as error:
            reason = damage(error)
            if reason is None:
                raise
            reasons.append(f"step {step}: {reason}")
    raise CheckpointCorruptedError(f"every checkpoint in {folder} is damaged: {'; '.join(reasons)}")
