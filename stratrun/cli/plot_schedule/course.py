"""Values of parameter groups over a training, by moving its schedules as it would."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from torch.optim import Optimizer

from stratrun.cli.job import form_of
from stratrun.cli.plan.planning import launched
from stratrun.cli.plan.simulation import Simulation, chosen
from stratrun.cli.plan.stand_in import AgreeingRanks
from stratrun.cli.plot_schedule.watched import Watched, remarks_on
from stratrun.data import build_feed
from stratrun.distributed import ProcessEnv
from stratrun.errors import ConfigError, nearest
from stratrun.hooks import ParamSchedulerHook
from stratrun.hooks.logging import learning_rates
from stratrun.optim import Extent
from stratrun.optim import scheduler as schedules
from stratrun.runner import checks, parts
from stratrun.runner.developing import parse_dev
from stratrun.runner.form import Form, require
from stratrun.state import BatchInfo

_POINTS = 20_000
"""How many are kept at most; all moves are made."""


@dataclass(slots=True)
class Course:
    """What updates of a training are made with."""

    param: str
    updates: int
    epochs: list[int]
    """The number of updates that each epoch ends with."""
    kept: list[int]
    """The numbers of the updates, from 1, whose values are there."""
    values: dict[str, list[float]]
    """By the name of a group in the logs."""
    remarks: list[str] = field(default_factory=list)


def course_of(given: Namespace) -> Course:
    """What a training by a config does to `given.param`.

    Raises:
        StratrunError: it could not be started like this, or nobody knows how long it is.
    """
    form = form_of(given)
    require(form, "train")
    checks.check(form, "train")
    ranks = _data_ranks(form, given.world_size)
    extent = _extent(form, ranks, given.batches_per_epoch)
    if extent.updates is None:
        raise ConfigError(
            "how many updates the training has is not known beforehand, as its data has no length or its "
            "loop is of another kind; give --batches-per-epoch N"
        )
    optimizers = _optimizers(form, ranks)
    built = schedules.build(form.param_scheduler, optimizers, extent)
    names = [where for where, _ in schedules.each(form.param_scheduler)]
    watched = [Watched(name, schedule) for name, schedule in zip(names, built, strict=True)]
    course = _moved(optimizers, watched, extent, given.param)
    course.remarks.extend(remarks_on(watched, course.values, course.param, extent))
    return course


def _data_ranks(form: Form, world_size: int) -> int:
    """How many of so many ranks have different samples."""
    env = ProcessEnv(world_size=world_size, launched=True)
    with launched(env, world_size):
        return world_size // chosen(form, env).strategy.ranks_per_batch


def _optimizers(form: Form, ranks: int) -> dict[str, Optimizer]:
    """Those of the run on so many ranks with different samples, over parameters that take no memory."""
    whole = replace(form, strategy="single", accelerator="cpu", compile=None, activation_checkpointing=None)
    env = ProcessEnv()
    simulation = Simulation(whole, chosen(whole, env), AgreeingRanks(env))
    simulation.data_ranks = ranks  # which learning rates may be scaled by
    simulation.build()
    return simulation.engine.optimizers


def _extent(form: Form, ranks: int, batches: int | None) -> Extent:
    """How long the training is on so many ranks with different samples, as its own loop says."""

    def build(spec: Any, *, train: bool = False, name: str = "dataloader") -> Any:
        if batches is not None:
            return _Length(batches)
        setting: dict[str, Any] = {
            "seed": 0,
            "rank": 0,
            "world_size": ranks,
            "batch": BatchInfo(),
            "limit": parse_dev(form.dev_cfg).limit("train") if train else None,
        }
        return build_feed(spec, train=train, move=lambda one: one, name=name, **setting)

    run: Any = SimpleNamespace(build_dataloader=build, build_evaluator=lambda spec: None, epoch=0, iter=0)
    return parts.build_loop(run, form, "train").extent()


class _Length:
    """A loader that is only counted."""

    sized, epoch, batches_done = True, 0, 0

    def __init__(self, batches: int) -> None:
        self.epoch_length = batches

    def __len__(self) -> int:
        return self.epoch_length


def _moved(optimizers: dict[str, Optimizer], watched: list[Watched], extent: Extent, param: str) -> Course:
    """Move the schedules as often as the training would, by the hook that does it there."""
    assert extent.updates is not None
    run: Any = SimpleNamespace(step=0, epoch=0, schedules=watched)
    hook = ParamSchedulerHook()
    hook.before_train(run)
    course = Course(param, extent.updates, [], [], {})
    every = max(extent.updates // _POINTS, 1)
    epochs = set(extent.epoch_ends())
    for last in sorted(epochs | {extent.updates}):
        while run.step < last:
            if run.step % every == 0 or run.step + 1 == last:
                _note(course, run.step + 1, optimizers)
            run.step += 1
            hook.after_train_iter(run)
        if last in epochs:
            course.epochs.append(last)
            run.epoch += 1
            hook.after_train_epoch(run)
    return course


def _note(course: Course, number: int, optimizers: dict[str, Optimizer]) -> None:
    try:
        values = learning_rates(optimizers, course.param)
    except KeyError as error:
        group = next(iter(optimizers.values())).param_groups[0]
        known = [key for key, value in group.items() if isinstance(value, float)]
        raise ConfigError(
            f"--param {course.param}: not every parameter group has it; {nearest(course.param, known)}"
        ) from error
    course.kept.append(number)
    for name, value in values.items():
        if isinstance(value, bool | tuple | list | None) or not math.isfinite(float(value)):
            raise ConfigError(f"--param {course.param}: {value!r} of {name} is nothing to draw")
        course.values.setdefault(name, []).append(float(value))
