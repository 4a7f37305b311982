"""A config looked at as a whole: by the checks that a job begins with, and not only up to the first error."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from stratrun.connector import choose
from stratrun.distributed import ProcessEnv
from stratrun.errors import ConfigError, MissingArgumentError, StratrunError
from stratrun.hooks.dispatch import HookList
from stratrun.optim import optimizer as optimizers
from stratrun.optim import scheduler as schedulers
from stratrun.problems import Gathering, part
from stratrun.registry import HOOKS
from stratrun.runner import checks, parts, resume
from stratrun.runner.arguments import of_config
from stratrun.runner.form import Form, Job, require
from stratrun.runner.runner import Runner
from stratrun.runner.saving import parse_saving

_JOBS: tuple[Job, ...] = ("train", "val", "test", "predict")


def examine(
    config: Mapping[str, Any], found: Gathering, jobs: Sequence[Job] = (), world_size: int | None = None
) -> list[Job]:
    """Look for everything that jobs of a config would be refused for. Called within `gathering`.

    Args:
        jobs: All that the config has data for, by default.
        world_size: How many ranks it is to be started on, if that is known.

    Returns:
        The jobs that were looked at.
    """
    entry, arguments = of_config(config, Runner)
    runner = entry(**{"cfg": config, **arguments})
    form: Form = runner._given
    jobs = jobs or _described(form)
    if not jobs:
        raise MissingArgumentError(
            "the config describes no job: it has no dataloader; add train_dataloader, or that of another job"
        )
    for job in jobs:
        with part():
            require(form, job)
        with part():
            checks.check(_filled_in(form, job), job)
    with part("checkpoint_cfg"):
        parse_saving(form.checkpoint_cfg)
    with part():
        _check_layers(form, world_size)
    with part("optimizer"):
        _try_optimizers(form, found)
    with part():
        resume.look(form, jobs, found)
    with part("custom_hooks"):
        _check_built_hooks(runner._form, jobs, found)
    return list(jobs)


def _filled_in(form: Form, job: Job) -> Form:
    """The form with something in place of what it lacks, which was told already."""
    needed: dict[str, Any] = {f"{job}_dataloader": [()], "train_cfg": {"max_epochs": 1}}
    return replace(form, **{name: value for name, value in needed.items() if getattr(form, name) is None})


def _described(form: Form) -> list[Job]:
    return [job for job in _JOBS if form.of(job, "dataloader") is not None or _trains(form, job)]


def _trains(form: Form, job: Job) -> bool:
    return job == "train" and (form.train_cfg is not None or form.optimizer is not None)


def _check_layers(form: Form, world_size: int | None) -> None:
    """The strategy, the accelerator and the precision, on this machine; and as launched, if that is known."""
    env = ProcessEnv.from_environ(os.environ)
    if world_size is not None:
        env = ProcessEnv(0, 0, world_size, launched=world_size > 1)
    choose(
        strategy=form.strategy,
        accelerator=form.accelerator,
        precision=form.precision,
        env=env,
        launched=world_size is not None or env.launched,
    )


def _try_optimizers(form: Form, found: Gathering) -> None:
    """What only classes of torch themselves can tell of their values, over a parameter of one number."""
    if form.optimizer is None or found.has("optimizer"):
        return
    made: dict[str, Optimizer] = {}
    for name, spec in optimizers.specs(form.optimizer).items():
        where = f"optimizer.{name}" if optimizers.is_several(form.optimizer) else "optimizer"
        if not found.within(where) and isinstance(spec, Mapping | str | type):
            with part(where):
                one = optimizers.try_values(spec, where)
                if one is not None:
                    made[name] = one
    for where, spec in schedulers.each(form.param_scheduler):
        if not found.within(where) and isinstance(spec, Mapping):
            optimizer = made.get(spec.get("optimizer", next(iter(made), "")))
            if optimizer is not None:
                with part(where):
                    schedulers.try_values(spec, deepcopy(optimizer), where)


def _check_built_hooks(form: Form, jobs: Sequence[Job], found: Gathering) -> None:
    """What only a hook itself can tell. To build one costs nothing: data and model are not there yet."""
    if found.has("custom_hooks") or found.has("default_hooks"):
        return
    hooks = HookList()
    for where, spec in parts.hook_specs(form):
        if not found.within(where):
            with part(where), _as_config_error(where):
                options, priority = parts.split_priority(spec, where)
                hooks.register(HOOKS.build(options, where=where), priority)
    if not found.under("custom_hooks", "default_hooks", "non_finite"):
        for job in jobs:
            with part():
                checks.check_hooked(form, job, hooks)


@contextmanager
def _as_config_error(where: str) -> Iterator[None]:
    try:
        yield
    except StratrunError:
        raise
    except Exception as error:  # whatever a hook of the user's raises
        raise ConfigError(
            f"{where}: cannot be built: {type(error).__name__}: {error}; change its arguments"
        ) from error
