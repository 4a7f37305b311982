"""Reading on all ranks: they take the same checkpoint, or fail together."""

import logging

from stratrun.checkpoint import layout
from stratrun.checkpoint.agreement import decided_by_main, together
from stratrun.checkpoint.discovery import neighbours
from stratrun.checkpoint.division import Division
from stratrun.checkpoint.reader import Loaded, Room, StoredCheckpoint, damage
from stratrun.distributed.collectives import Collectives
from stratrun.errors import CheckpointCorruptedError
from stratrun.storage import Folder

_LOG = logging.getLogger("stratrun.checkpoint")


def load_exactly(ranks: Collectives, folder: Folder, division: Division, room: Room | None) -> Loaded:
    """Read the one checkpoint that was asked for. See `StoredCheckpoint.read`.

    Raises:
        CheckpointCorruptedError: some rank finds it damaged; names those beside it.
    """
    loaded = _read(ranks, folder, division, room)
    if isinstance(loaded, Loaded):
        return loaded
    beside = decided_by_main(ranks, f"looking beside {folder}", lambda: neighbours(folder))
    raise CheckpointCorruptedError(f"checkpoint {folder} is damaged: {loaded}; {beside}")


def load_newest(
    ranks: Collectives, folder: Folder, steps: list[int], division: Division, room: Room | None
) -> Loaded:
    """Read the newest of the ascending `steps` that every rank finds intact.

    Raises:
        CheckpointCorruptedError: there is no such one; gives the reason for each.
    """
    passed_over: dict[int, str] = {}
    for step in reversed(steps):
        loaded = _read(ranks, folder.child(layout.name_of(step)), division, room)
        if isinstance(loaded, Loaded):
            loaded.passed_over.update(passed_over)
            return loaded
        passed_over[step] = loaded
        if ranks.is_main:
            _LOG.warning("checkpoint of step %d in %s is passed over: %s", step, folder, loaded)
    reasons = "; ".join(f"step {step}: {reason}" for step, reason in passed_over.items())
    raise CheckpointCorruptedError(f"every checkpoint in {folder} is damaged: {reasons}")


def _read(ranks: Collectives, folder: Folder, division: Division, room: Room | None) -> Loaded | str:
    """Read on all ranks, or the reason why some rank finds it damaged."""

    def attempt() -> Loaded | str:
        try:
            return StoredCheckpoint(folder).read(ranks.rank, division, room)
        except Exception as error:
            reason = damage(error)
            if reason is None:
                raise
            return reason

    loaded = together(ranks, f"reading {folder}", attempt)
    for reason in ranks.gather(loaded if isinstance(loaded, str) else None):
        if reason is not None:
            return reason
    return loaded
