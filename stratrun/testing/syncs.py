"""Waits between log points, counted."""

from stratrun.distributed.syncs import SyncWatch


def count_syncs() -> SyncWatch:
    """Count what code waits for: ``with count_syncs() as found: ...``, then ``print(found)``.

    Of this thread, and on any device: see `SyncWatch` for what counts. `len(found)` is how many waits there
    were, `found.syncs` has each with the line that asked for it, and `found.exchanges` the collectives over
    the group of all ranks.
    """
    return SyncWatch()
