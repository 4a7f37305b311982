"""Schedules of one value at the same time, of which one knows nothing of the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf

from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    SequentialLR,
)

from stratrun.errors import ConfigError
from stratrun.optim.extent import Extent
from stratrun.optim.schedule import Schedule

# They work out the value from the initial one, and not from what it is (a SequentialLR where a part begins).
_ABSOLUTE = (CosineAnnealingWarmRestarts, CyclicLR, LambdaLR, OneCycleLR, SequentialLR)


@dataclass(frozen=True, slots=True)
class Acting:
    """A schedule, and what it moves."""

    where: str
    schedule: Schedule
    values: set[tuple[int, str, int]]
    """Optimizer, name and number of the group of each value."""


def refuse_overlap(acting: Sequence[Acting], extent: Extent) -> None:
    """Let schedules act together only where torch's chain.

    Raises:
        ConfigError: one would set a value anew that another has moved.
    """
    for one, other in combinations(acting, 2):
        absolute = next((a for a in (one, other) if _is_absolute(a.schedule)), None)
        if absolute is None or not one.values & other.values:
            continue
        if _apart(one, other, extent):
            continue
        rest = other if absolute is one else one
        kind, with_it = (type(a.schedule.scheduler).__name__ for a in (absolute, rest))
        raise ConfigError(
            f"{absolute.where}: {kind} works out the value from the initial one, so that it undoes what "
            f"{rest.where} ({with_it}) does at the same time; give them windows one after the other, with "
            "end= and begin= (in the same unit: convert_to_iter_based=True turns epochs into updates), "
            "or use a schedule that has a warm-up, such as WarmupCosineLR"
        )


def _is_absolute(schedule: Schedule) -> bool:
    scheduler = schedule.scheduler
    return isinstance(scheduler, _ABSOLUTE) or bool(getattr(scheduler, "absolute", False))


def _apart(one: Acting, other: Acting, extent: Extent) -> bool:
    """Whether one is over where the other begins."""
    if bool(one.schedule.monitor) != bool(other.schedule.monitor):
        return False
    # At the end of an epoch, what moves by updates goes first; else, what is listed first.
    first, second = sorted((one.schedule, other.schedule), key=lambda schedule: schedule.by_epoch)
    if first.by_epoch == second.by_epoch:
        extent = Extent(updates_per_epoch=1)
    if extent.updates_at(0) is None:
        return False
    (a, b), (c, d) = _window(first, extent, 0), _window(second, extent, 1)
    return b <= c or d <= a


def _window(schedule: Schedule, extent: Extent, late: int) -> tuple[float, float]:
    end = inf if schedule.end is None else float(schedule.end)
    if isinstance(schedule.scheduler, LinearLR | ConstantLR):
        # It goes on for ever, but leaves the value as it is after its last move.
        end = min(end, schedule.begin + schedule.scheduler.total_iters + late)
    if not schedule.by_epoch:
        return schedule.begin, end
    first, last = extent.updates_at(schedule.begin), extent.updates_at(end)
    assert first is not None and last is not None
    return first, last
