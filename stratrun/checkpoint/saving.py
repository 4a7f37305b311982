"""One save: from the state of all ranks to a committed checkpoint, or to the same error on all."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.planner import WriteItem

from stratrun.checkpoint.agreement import Alarm, together
from stratrun.checkpoint.contribution import Contribution, Target
from stratrun.checkpoint.storage_writer import SnapshotPlanner
from stratrun.checkpoint.writer import Attempt
from stratrun.distributed import Collectives
from stratrun.errors import CheckpointError

# Seconds between two looks at what other ranks report.
_LOOK_EVERY = 1.0


def write(
    ranks: Collectives,
    target: Target,
    begin: Callable[[], str | None],
    brought: Contribution,
    staged: Mapping[str, Tensor],
    alarm: Alarm,
) -> bool:
    """Write a checkpoint, on all ranks together.

    Args:
        begin: Called on every rank; on the main rank it makes room and names the attempt, or gives
            None where nothing is to be written.
        brought: What this rank brings.
        staged: Its tensors as they are to be written: copies, where the run goes on meanwhile.
        alarm: How a rank that fails stops the others.

    Returns:
        Whether there was anything to write.

    Raises:
        CheckpointError: it failed on some rank; nothing of it is left.
        PeerError: a rank is gone, or did not come in time.
    """
    token = ranks.from_main(together(ranks, str(target), begin))
    if token is None:
        return False
    attempt = Attempt(target.folder, target.step, target.run_id, token)
    try:
        _write(ranks, str(target), attempt, brought, staged, alarm)
    except Exception:
        if ranks.is_main:
            attempt.abandon()
        raise
    return True


def _write(
    ranks: Collectives,
    what: str,
    attempt: Attempt,
    brought: Contribution,
    staged: Mapping[str, Tensor],
    alarm: Alarm,
) -> None:
    writer = attempt.writer(ranks.rank, ranks.world_size, brought.own)
    planner = _Attentive(brought.tensors, staged, alarm)
    # By torch's planner, as it knows how tensors that are spread over a mesh of ranks divide into files.
    local = together(ranks, what, lambda: writer.prepare_local_plan(planner.create_local_plan()))
    plans = ranks.gather_to_main(local)

    def arrange() -> Any:
        if plans is None:
            return None, None
        divided, metadata = planner.create_global_plan(plans)
        return writer.prepare_global_plan(divided), metadata

    divided, metadata = together(ranks, what, arrange)
    mine = ranks.scatter_from_main(divided)

    def write_mine() -> Any:
        try:
            return writer.write_data(planner.finish_plan(mine), planner).wait()
        except _Stopped:
            return None  # who called tells why, when all have come together
        except Exception as error:
            alarm.call_for(error)
            raise

    results = ranks.gather_to_main(together(ranks, what, write_mine))

    def commit() -> None:
        if results is not None:
            if None in results:
                raise CheckpointError(alarm.heard() or "stopped")
            attempt.commit(metadata, results, {"shared": brought.shared, "meta": brought.meta})

    together(ranks, what, commit)


class _Stopped(Exception):
    """Another rank has failed, so that this one need not go on."""


class _Attentive(SnapshotPlanner):
    """Stops a rank that still writes when another has failed: all are to hear of it soon."""

    def __init__(self, live: Mapping[str, Tensor], staged: Mapping[str, Tensor], alarm: Alarm) -> None:
        super().__init__(live, staged)
        self._alarm = alarm
        self._look_at = time.monotonic() + _LOOK_EVERY

    def resolve_data(self, write_item: WriteItem) -> Any:
        if time.monotonic() > self._look_at:
            self._look_at = time.monotonic() + _LOOK_EVERY
            if self._alarm.heard() is not None:
                raise _Stopped
        return super().resolve_data(write_item)
