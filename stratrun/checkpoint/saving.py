"""One save: from the state of all ranks to a committed checkpoint, or to the same error on all."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from stratrun.checkpoint.agreement import LOOK_EVERY, Alarm, together
from stratrun.checkpoint.contribution import Contribution, Target
from stratrun.checkpoint.storage_writer import SnapshotPlanner
from stratrun.checkpoint.writer import Attempt
from stratrun.distributed import Collectives
from stratrun.errors import CheckpointError

Planned = tuple[SavePlan, dict[str, dict[str, Any]]]


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
    what = str(target)
    token, step = ranks.from_main((together(ranks, what, begin), target.step))
    if token is None:
        return False
    attempt = Attempt(target.folder, target.step, target.run_id, token)
    try:
        save = _Save(ranks, attempt, brought, staged, alarm)
        plans = ranks.gather_to_main(together(ranks, what, lambda: save.plan(step, target.step)))
        plan, metadata = together(ranks, what, lambda: save.divide(plans)) or (None, None)
        mine = ranks.scatter_from_main(plan)
        results = ranks.gather_to_main(together(ranks, what, lambda: save.write(mine)))
        together(ranks, what, lambda: save.commit(metadata, results))
    except Exception:
        if ranks.is_main:
            attempt.abandon()
        raise
    return True


class _Save:
    """What one rank does for a checkpoint between the exchanges.

    Planned by torch's planner, as it knows how tensors that are spread over a mesh of ranks divide
    into files.
    """

    def __init__(
        self,
        ranks: Collectives,
        attempt: Attempt,
        brought: Contribution,
        staged: Mapping[str, Tensor],
        alarm: Alarm,
    ) -> None:
        self._attempt = attempt
        self._brought = brought
        self._alarm = alarm
        self._writer = attempt.writer(ranks.rank, ranks.world_size, brought.own)
        self._planner = _Attentive(brought.tensors, staged, alarm)

    def plan(self, step: int, mine: int) -> Planned:
        """What this rank would write, and what it has of mappings that are divided.

        `step` is the main rank's.
        """
        if step != mine:
            raise CheckpointError(
                f"step {mine} is saved here, and step {step} on the main rank; all ranks must save at the "
                "same iterations, so whatever calls for it must not depend on the rank"
            )
        return self._writer.prepare_local_plan(self._planner.create_local_plan()), self._brought.divided

    def divide(self, planned: list[Planned] | None) -> tuple[list[SavePlan], Metadata] | None:
        """Who writes what, on the main rank."""
        if planned is None:
            return None
        for _, apart in planned[1:]:
            self._brought.take(apart)
        divided, metadata = self._planner.create_global_plan([plan for plan, _ in planned])
        return self._writer.prepare_global_plan(divided), metadata

    def write(self, plan: SavePlan) -> list[WriteResult] | None:
        """Write the files of this rank; None if another has failed meanwhile."""
        try:
            return self._writer.write_data(self._planner.finish_plan(plan), self._planner).wait()
        except _Stopped:
            return None  # who called tells why, when all have come together
        except Exception as error:
            self._alarm.call_for(error)
            raise

    def commit(self, metadata: Metadata | None, results: Sequence[list[WriteResult] | None] | None) -> None:
        """Have the main rank, which alone was told, make a checkpoint of what all have written."""
        if metadata is None or results is None:
            return
        written = [one for one in results if one is not None]
        if len(written) < len(results):
            raise CheckpointError(self._alarm.heard() or "stopped")
        brought = self._brought
        self._attempt.commit(metadata, written, {"shared": brought.shared, "meta": brought.meta})


class _Stopped(Exception):
    """Another rank has failed, so that this one need not go on."""


class _Attentive(SnapshotPlanner):
    """Stops a rank that still writes when another has failed: all are to hear of it soon."""

    def __init__(self, live: Mapping[str, Tensor], staged: Mapping[str, Tensor], alarm: Alarm) -> None:
        super().__init__(live, staged)
        self._alarm = alarm
        self._look_at = time.monotonic() + LOOK_EVERY

    def resolve_data(self, write_item: WriteItem) -> Any:
        if time.monotonic() > self._look_at:
            self._look_at = time.monotonic() + LOOK_EVERY
            if self._alarm.heard() is not None:
                raise _Stopped
        return super().resolve_data(write_item)
