"""What attempts have left in a folder of checkpoints, and the removal of what need not stay.

What must not be removed is told in `stratrun.checkpoint.writer`.
"""

import re
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from stratrun.checkpoint import layout
from stratrun.checkpoint.opening import owner_of
from stratrun.errors import CheckpointError
from stratrun.storage import Folder

STAGING = ".staging"
# Files that all attempts call the same.
COMMON = {layout.STATE, layout.INDEX, layout.MANIFEST, layout.COMMITTED}
_TRASH = ".trash"
_BEGUN = re.compile(re.escape(STAGING) + r"-step-[0-9]+\.([A-Za-z0-9_-]{1,64})\.[0-9a-f]+")
_AT_ONCE = 16


def discard(root: Folder, name: str, run_id: str) -> None:
    """Remove a checkpoint so that no half of it is ever taken for a whole."""
    if root.is_local:
        trash = f"{_TRASH}-{name}.{run_id}.{secrets.token_hex(4)}"
        root.rename(name, trash)
        root.remove(trash)
    else:
        root.remove(f"{name}/{layout.COMMITTED}")
        root.remove(name)


def make_way(root: Folder, name: str, run_id: str) -> None:
    """Remove what is in the way of a new attempt: an unfinished or damaged checkpoint.

    Raises:
        CheckpointError: it is another run's.
    """
    folder = root.child(name)
    files = folder.names()
    owner = owner_of(folder)
    others = {run for run in (owner, *map(layout.run_of_shard, files)) if run not in (None, run_id)}
    if others and owner != run_id and (root.is_local or not COMMON.isdisjoint(files)):
        raise CheckpointError(
            f"{name} is there already, begun or damaged, of the other run {min(others)!r}; choose another "
            "work_dir, or remove it if that run has ended: stratrun ckpt prune"
        )
    discard_own(root, name, run_id)


def discard_own(root: Folder, name: str, run_id: str) -> None:
    """Remove a checkpoint of a run, whole or not, but not what other runs are writing in the same place."""
    folder = root.child(name)
    files = [] if root.is_local else folder.names()
    own = [file for file in files if layout.run_of_shard(file) in (None, run_id)]
    # While such a file is there no other attempt goes on in this place; else one may begin at any time.
    if root.is_local or (len(own) == len(files) and not COMMON.isdisjoint(files)):
        discard(root, name, run_id)
        return
    if layout.COMMITTED in files:
        folder.remove(layout.COMMITTED)
    remove_files(folder, own)
    drop_if_empty(root, name)


def leftovers(root: Folder, run_id: str) -> list[str]:
    """What earlier attempts of this run have left in a folder when they were killed."""
    names = root.names()
    if root.is_local:
        begun = (f"{STAGING}-", f"{_TRASH}-")
        return [name for name in names if name.startswith(begun) and name.split(".")[2:3] == [run_id]]
    return [name for name in names if layout.step_of(name) is not None and _is_dead(root.child(name), run_id)]


def unfinished_run(root: Folder) -> str | None:
    """The run that last began a checkpoint and did not finish it; None where none is begun."""
    if root.is_local:
        begun = map(_BEGUN.fullmatch, sorted(root.names()))
        runs = [found[1] for found in begun if found]
        return runs[-1] if runs else None
    steps = sorted((step, name) for name in root.names() if (step := layout.step_of(name)) is not None)
    for _, name in reversed(steps):
        folder = root.child(name)
        files = folder.names()
        shards = sorted(filter(None, map(layout.run_of_shard, files)))
        owner = owner_of(folder) or (shards[-1] if shards else None)
        if layout.COMMITTED not in files and owner is not None:
            return owner
    return None


def _is_dead(folder: Folder, run_id: str) -> bool:
    """Whether a folder is no checkpoint, and all in it that tells whose it is tells this run."""
    files = folder.names()
    if layout.COMMITTED in files:
        return False
    runs = {layout.run_of_shard(file) for file in files if layout.is_shard(file)}
    if layout.MANIFEST in files:
        runs.add(owner_of(folder))
    return runs == {run_id}


def remove_files(folder: Folder, files: Iterable[str]) -> None:
    """Remove files one by one, some at once: of a folder as a whole, others may have a part."""
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="stratrun-remove")
    try:
        for _ in pool.map(folder.remove, files):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def drop_if_empty(root: Folder, name: str) -> None:
    """Remove what some stores keep of a folder when nothing is in it any more."""
    if root.exists(name) and not root.child(name).names():
        root.remove(name)
