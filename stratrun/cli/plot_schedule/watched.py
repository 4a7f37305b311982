"""What a schedule does over a training, and what of that will not have been meant."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, MultiStepLR, StepLR

from stratrun.errors import ConfigError
from stratrun.optim import Extent, Schedule

_LENGTHS = ("T_max", "total_steps", "total_iters")
_NEARLY = 0.9
"""After how much of the training a value may stand still without a word."""
# They are over early by their nature, or stand still between steps.
_RESTING = (ConstantLR, LinearLR, MultiStepLR, StepLR)


class Watched:
    """A schedule of which is noted whether it moves anything."""

    def __init__(self, name: str, schedule: Schedule) -> None:
        self.name = name
        self.schedule = schedule
        self.by_epoch: bool = schedule.by_epoch
        self.monitor: str | None = schedule.monitor
        self.moved: bool = False

    @property
    def position(self) -> int:
        return self.schedule.position

    @property
    def kind(self) -> str:
        return type(self.schedule.scheduler).__name__

    def step(self) -> None:
        before = self._values()
        try:
            self.schedule.step()
        except Exception as error:
            unit = "epoch" if self.by_epoch else "update"
            raise ConfigError(
                f"{self.name}: {self.kind} fails after {unit} {self.position}, as the training would: {error}"
            ) from error
        self.moved = self.moved or before != self._values()

    def _values(self) -> list[Any]:
        return [group["lr"] for group in self.schedule.scheduler.optimizer.param_groups]


def remarks_on(
    watched: Sequence[Watched], values: Mapping[str, list[float]], param: str, extent: Extent
) -> list[str]:
    """A line on each thing that will not have been meant."""
    found = [line for one in watched for line in _of_schedule(one, extent)]
    resting = any(isinstance(one.schedule.scheduler, _RESTING) for one in watched if _of(one, param))
    if not any(_of(one, param) for one in watched):
        # OneCycleLR and CyclicLR move momentum beside the learning rate.
        still = all(min(course) == max(course) for course in values.values())
        found += [f"no schedule moves {param}"] if still else []
    elif not resting and not found:
        found += _standing(values, extent)
    return found


def _of(one: Watched, param: str) -> bool:
    return one.schedule.param == param


def _of_schedule(one: Watched, extent: Extent) -> Iterator[str]:
    schedule, unit = one.schedule, "epoch" if one.by_epoch else "update"
    called = f"{one.name}: {one.kind}"
    total = extent.epochs if one.by_epoch else extent.updates
    if one.monitor is not None:
        yield f"{called} follows {one.monitor!r}, which nobody knows before; what it does is not drawn"
        return
    if total is not None and schedule.begin >= total:
        yield f"{called} never moves: it begins after {schedule.begin} {unit}s, and the training has {total}"
        return
    if total is None:
        yield f"{called} moves by epochs, which end nobody knows when; what it does is not drawn"
        return
    if not one.moved:
        yield f"{called} never moves {schedule.param}"
        return
    key = next((key for key in _LENGTHS if hasattr(schedule.scheduler, key)), None)
    if key is not None:
        yield from _of_length(one, key, total, f"{called} has {key}={getattr(schedule.scheduler, key)}")


def _of_length(one: Watched, key: str, total: int, told: str) -> Iterator[str]:
    schedule, unit = one.schedule, "epochs" if one.by_epoch else "updates"
    length = getattr(schedule.scheduler, key)
    end = total if schedule.end is None else min(schedule.end, total)
    room = end - schedule.begin
    if end < total and key != "T_max" and length > room - (key == "total_iters"):
        yield f"{told}, but its window has {room} {unit}: the value stays where it is by then"
    elif length > room and end == total:
        yield f"{told}, but the training has {room} {unit} from where it begins: it is cut off"
    elif length < room - 1 and isinstance(schedule.scheduler, CosineAnnealingLR):
        yield f"{told}, and goes on for {room} {unit}: after its end the value goes up again"
    elif length < total - schedule.begin - 1 and not isinstance(schedule.scheduler, _RESTING):
        yield f"{told}, and the training {total - schedule.begin} {unit} from where it begins: it ends early"


def _standing(values: Mapping[str, list[float]], extent: Extent) -> Iterator[str]:
    """Groups whose value does not change any more, long before the end and before the last epoch."""
    updates = extent.updates or 1
    ends = extent.epoch_ends()
    last_epoch = updates - max((end for end in ends if end < updates), default=0) if ends else 0
    early = min(_NEARLY, 1 - last_epoch / updates)
    for name, course in values.items():
        last = max((n for n in range(1, len(course)) if course[n] != course[n - 1]), default=0)
        part = (last + 1) / len(course)
        if last > 0 and part < early and not math.isclose(course[-1], max(course)):
            yield f"{name} stands still after {100 * part:.0f} % of the {updates} updates"
