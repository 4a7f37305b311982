"""Finding checkpoints. What lies in the folder decides: no pointer file, no times of files."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from typing import Any

from stratrun.checkpoint import layout
from stratrun.errors import CheckpointNotFoundError, nearest
from stratrun.storage import Folder

IN_WORK_DIR = "checkpoints"
AT_ONCE = 8
"""Folders that are looked at together."""


def committed_steps(folder: Folder) -> list[int]:
    """Steps that carry the marker, ascending."""
    steps = sorted(step for name in folder.names() if (step := layout.step_of(name)) is not None)

    def is_marked(step: int) -> bool:
        return folder.exists(f"{layout.name_of(step)}/{layout.COMMITTED}")

    if folder.is_local:
        return list(filter(is_marked, steps))
    with ThreadPoolExecutor(AT_ONCE) as pool:  # there may be hundreds, and each answer takes its time
        return list(compress(steps, pool.map(is_marked, steps)))


def look_into(start: Folder) -> tuple[str, list[int] | None]:
    """What a folder that a user named leads to.

    Returns:
        The path below `start` where the checkpoints are, and their steps, ascending; None for
        the steps if it is itself a checkpoint.

    Raises:
        CheckpointNotFoundError: there is none; names those nearby.
    """
    if start.exists(layout.COMMITTED):
        return "", None
    if layout.step_of(start.name) is not None:
        state = "is unfinished: it has no marker" if start.exists() else "does not exist"
        raise CheckpointNotFoundError(f"checkpoint {start} {state}; {neighbours(start)}")
    for path in ("", IN_WORK_DIR):
        steps = committed_steps(start.child(path) if path else start)
        if steps:
            return path, steps
    raise CheckpointNotFoundError(
        f"no checkpoint in {start}{'' if start.exists() else ', which does not exist'}"
    )


def newest_in(start: Folder) -> str:
    """The path below a folder of the checkpoint that it leads to: the newest in it, or '' for itself.

    Raises:
        CheckpointNotFoundError: there is none; names what is nearby.
    """
    if not start.exists():
        raise CheckpointNotFoundError(missing(start))
    path, steps = look_into(start)
    return path if steps is None else f"{path}/{layout.name_of(steps[-1])}".lstrip("/")


def best_steps(meta: Mapping[str, Any]) -> dict[str, list[int]]:
    """Of what a checkpoint notes: for each metric that was watched its best steps, best first."""
    # Written by whoever wrote the checkpoint, so it may be anything.
    best = meta.get("best")
    return {
        str(metric): [pair[1] for pair in ranking if _is_ranked(pair)]
        for metric, ranking in (best.items() if isinstance(best, Mapping) else ())
        if isinstance(ranking, list)
    }


def _is_ranked(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and type(pair[1]) is int


def neighbours(checkpoint: Folder, limit: int = 5) -> str:
    """Say which committed steps lie beside a checkpoint, the nearest ones."""
    wanted = layout.step_of(checkpoint.name) or 0
    steps = sorted(committed_steps(checkpoint.parent), key=lambda step: (abs(step - wanted), step))
    if not steps:
        return f"there is none in {checkpoint.parent}"
    return f"steps there: {', '.join(map(str, sorted(steps[:limit])))}"


def missing(at: Folder) -> str:
    """Say that there is nothing at a URL, and what is nearby."""
    if layout.step_of(at.name) is not None:
        return f"{at} does not exist; {neighbours(at)}"
    if not at.parent.exists():
        return f"{at} does not exist, nor does the folder that it should be in; check the path"
    return f"{at} does not exist; {nearest(at.name, at.parent.names())}"
