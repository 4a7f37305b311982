"""Everything about a form that can be refused while nothing is built, connected or written yet."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stratrun.blocks import BlockTransforms
from stratrun.checkpoint.parts import LoadFrom
from stratrun.checkpoint.selection import BEST, LAST
from stratrun.control import parse_control
from stratrun.data import check_data, samples_of_batch
from stratrun.data.raw import check_raw_steps
from stratrun.engine import Clipping, NonFinite
from stratrun.errors import ConfigError, MissingArgumentError, nearest
from stratrun.evaluation import check_evaluator
from stratrun.hooks import CheckpointHook, EarlyStoppingHook, Hook, SpikeHook
from stratrun.hooks.averaging import AveragingHook
from stratrun.hooks.dispatch import HookList
from stratrun.loggers import check_loggers
from stratrun.loops import BaseLoop
from stratrun.loops.evaluate import evaluators_of, names_loaders
from stratrun.optim import optimizer as optimizers
from stratrun.optim import scheduler as schedules
from stratrun.optim.scaling import UpdateSize
from stratrun.problems import part
from stratrun.registry import HOOKS, LOOPS, MODELS
from stratrun.registry.arguments import at, parameters_of
from stratrun.runner.developing import check_dev
from stratrun.runner.environment import parse_env, parse_randomness
from stratrun.runner.form import DEFAULT_HOOKS, Form, Job, of_the_user
from stratrun.runner.parts import functional_loss, hook_specs, loop_spec, split_priority
from stratrun.storage import Folder
from stratrun.storage.urls import redacted

_JOBS: tuple[Job, ...] = ("train", "val", "test", "predict")
# What is meant as a word of ours, and would be taken for a path.
_YES = ("true", "yes", "on", "latest", "newest", BEST, LAST)


def check(form: Form, job: Job) -> None:
    """Refuse what could not be built for this job, building nothing.

    Raises:
        ConfigError: names the argument, the value and the nearest that would do.
    """
    steps: dict[str, Callable[[], object]] = {
        "name": lambda: check_name(form.name),
        "model": lambda: check_model(form.model),
        "loss": lambda: check_loss(form.loss),
        "custom_hooks": lambda: check_hooks(form),
        "clip_grad": lambda: Clipping.parse(form.clip_grad),
        "non_finite": lambda: NonFinite.parse(form.non_finite),
        "compile": lambda: BlockTransforms(form.compile, None),
        "activation_checkpointing": lambda: BlockTransforms(None, form.activation_checkpointing),
        "env_cfg": lambda: _check_environment(form),
        "control_cfg": lambda: parse_control(form.control_cfg, form.resume),
        "dev_cfg": lambda: check_dev(form, job),
        "inference_cfg": lambda: check_raw_steps(form.inference_cfg),
        "loggers": lambda: check_loggers(form.loggers),
        "work_dir": lambda: check_work_dir(form.work_dir),
        "resume": lambda: check_origin(form),
    }
    if job == "train" and form.optimizer is not None:
        steps["optimizer"] = lambda: _check_optimizer(form)
        steps["param_scheduler"] = lambda: schedules.check(
            form.param_scheduler, list(optimizers.specs(form.optimizer))
        )
    for key, step in steps.items():
        with part(key):
            step()
    for one in ("train", "val") if job == "train" and form.validates else (job,):
        with part(f"{one}_cfg"):
            check_loop(form, one)
        with part(f"{one}_dataloader"):
            _check_loaders(form, one)


def _check_environment(form: Form) -> None:
    with part("randomness"):
        parse_randomness(form.randomness)
    settings, randomness = parse_env(form.env_cfg), parse_randomness(form.randomness)
    if settings.cudnn_benchmark and randomness.deterministic:
        raise ConfigError(
            "env_cfg: cudnn_benchmark=True picks algorithms by their speed, which "
            f"deterministic={randomness.deterministic!r} in randomness rules out; leave one of them out"
        )


def _check_optimizer(form: Form) -> None:
    size: int | None = None
    with part("train_dataloader"):
        # With one rank, as how many there are says nothing on whether the size of a batch is known.
        size = samples_of_batch(form.train_dataloader, 1)
    optimizers.check(form.optimizer, UpdateSize(size))


def check_name(name: Any) -> None:
    """Refuse what no folder below work_dirs can be called by."""
    if name is None or (isinstance(name, str) and ".." not in name.split("/") and name.strip("./")):
        return
    mend = "write a word" if isinstance(name, str) else f"write it in quotes, {str(name)!r}"
    raise ConfigError(f"name={name!r} is no name, which the folder of the run is called by; {mend}")


def check_model(spec: Any) -> None:
    if isinstance(spec, str | type | Mapping):
        MODELS.check(spec, where="model")
    elif not isinstance(spec, nn.Module) and not callable(spec):
        raise ConfigError(
            f"model={spec!r} is no model; give an nn.Module, dict(type=...), or a function that returns one"
        )


def check_loss(spec: Any) -> None:
    if isinstance(spec, str):
        functional_loss(spec)
    elif isinstance(spec, type | Mapping):
        MODELS.check(spec, where="loss")
    elif spec is not None and not callable(spec):
        raise ConfigError(
            f"loss={spec!r} is no loss; give a function of (outputs, targets), a module such as "
            "nn.CrossEntropyLoss(), or a name such as 'cross_entropy'"
        )


def check_hooks(form: Form) -> None:
    _refuse_other_kinds(form)
    unknown = [name for name in form.default_hooks or {} if name not in DEFAULT_HOOKS]
    for name in unknown:
        with part(f"default_hooks.{name}"):
            raise ConfigError(
                f"default_hooks: no default hook is called {name!r}; {nearest(str(name), DEFAULT_HOOKS)} "
                "A hook of your own goes into custom_hooks"
            )
    for where, spec in hook_specs(form):
        if where.removeprefix("default_hooks.") not in unknown:
            with part(where):
                _check_hook(spec, where)


def _check_hook(spec: Any, where: str) -> None:
    options, _ = split_priority(spec, where)
    entry: Any = options
    if isinstance(options, str | type | Mapping):
        entry, _ = HOOKS.check(options, where=where)
    # What a function returns is seen when it is called.
    if isinstance(entry, type) or entry is options:
        kind = entry if isinstance(entry, type) else type(entry)
        if not issubclass(kind, Hook):
            shown = kind.__name__ if hasattr(kind, "__name__") else repr(options)
            raise ConfigError(
                f"{where}: {shown} is no hook; give an object, a name, or dict(type=...) "
                "of a class that derives from stratrun.hooks.Hook"
            )


def check_hooked(form: Form, job: Job, hooks: HookList) -> None:
    """Refuse hooks, and schedules, that would wait in vain for what no part of the job gives them.

    Raises:
        ConfigError: a point that none of our loops calls is a near miss of one that they call,
            a metric is waited for and there is no validation, or several hooks have averages to show.
    """
    settings = NonFinite.parse(form.non_finite)
    saves = any(isinstance(hook, CheckpointHook) for hook in hooks)
    if job == "train" and settings.policy == "rollback" and settings.to == "checkpoint" and not saves:
        raise ConfigError(
            "non_finite='rollback' goes back to the newest checkpoint, and without a CheckpointHook there is "
            "none; keep copies with non_finite=dict(policy='rollback', to='memory')"
        )
    for hook in hooks:
        _refuse_other_policy(hook, settings)
    averaging = [type(hook).__name__ for hook in hooks if isinstance(hook, AveragingHook)]
    if len(averaging) > 1:
        raise ConfigError(
            f"custom_hooks: evaluations show the averages of one hook, and {' and '.join(averaging)} "
            "have some each; keep one of them"
        )
    # A loop of the user's may call points of its own, and validate in its own way.
    if any(of_the_user(form, one) for one in _JOBS):
        return
    for text in hooks.never_called():
        raise ConfigError(text)
    if job != "train" or form.validates:
        return
    mend = "but there is none without a val_dataloader; give one, and a val_evaluator"
    for hook in hooks:
        _refuse_lone_monitor(hook, mend)
    for _, spec in schedules.each(form.param_scheduler):
        monitor = spec.get("monitor") if isinstance(spec, Mapping) else getattr(spec, "monitor", None)
        if monitor is not None:
            raise ConfigError(f"param_scheduler: monitor={monitor!r} is a result of validation, {mend}")


def _refuse_other_policy(hook: Hook, settings: NonFinite) -> None:
    if isinstance(hook, SpikeHook) and hook.action not in ("warn", settings.policy):
        raise ConfigError(
            f"SpikeHook: action={hook.action!r} deals with a spike as non_finite={hook.action!r} does with a "
            f"loss that is not finite, and this run has non_finite={settings.policy!r}; give it the same"
        )


def _refuse_lone_monitor(hook: Hook, mend: str) -> None:
    if isinstance(hook, CheckpointHook) and hook.watched:
        raise ConfigError(f"save_best={hook.watched[0]!r} is a result of validation, {mend}")
    if isinstance(hook, EarlyStoppingHook):
        raise ConfigError(f"EarlyStoppingHook: monitor={hook.monitor!r} is a result of validation, {mend}")


def check_loop(form: Form, job: str) -> None:
    spec = loop_spec(form, job)
    if isinstance(spec, BaseLoop):
        return
    where = f"{job}_cfg"
    entry, options = LOOPS.check(spec, where=where, given=("runner", "dataloader"), offer=("evaluator",))
    if isinstance(entry, type):
        if not issubclass(entry, BaseLoop):
            raise ConfigError(
                f"{where}: {entry.__name__} is no loop; derive it from stratrun.runner.BaseLoop"
            )
        try:
            entry.check(options)
        except ConfigError as error:
            key = str(error).partition("=")[0]
            raise ConfigError(f"{where}: {error}{at(getattr(spec, 'places', {}), key)}") from error
    evaluator = (parameters_of(entry) or {}).get("evaluator")
    required = evaluator is not None and evaluator.default is evaluator.empty
    if required and form.of(job, "evaluator") is None and "evaluator" not in spec:
        raise MissingArgumentError(
            f"{job}_dataloader is given, but no {job}_evaluator to measure on it; "
            f"give for example {job}_evaluator=dict(type='Accuracy')"
        )


def check_work_dir(spec: Any) -> None:
    """Refuse a folder that cannot be made or written to, as far as can be told without trying."""
    if spec is None:
        return
    if not isinstance(spec, str | os.PathLike) or not os.fspath(spec):
        raise ConfigError(f"work_dir={spec!r} is no path or URL; give one, such as 'work_dirs/first'")
    path = Folder(os.fspath(spec)).local_path()
    if path is None:
        return
    shown = f"work_dir={os.fspath(spec)!r}"
    # `Path.exists` raises in a folder that this user may not look into.
    there = next((one for one in (path, *path.parents) if os.path.exists(one)), Path("/"))
    if not there.is_dir():
        raise ConfigError(f"{shown} cannot be written: {there} is a file; choose another work_dir")
    if not os.access(there, os.W_OK | os.X_OK):
        read_only = os.statvfs(there).f_flag & os.ST_RDONLY
        why = (
            f"{there} is on a file system that can only be read"
            if read_only
            else f"this user has no right to write in {there}"
        )
        raise ConfigError(f"{shown} cannot be written: {why}; choose another work_dir")


def check_origin(form: Form) -> None:
    resume = form.resume
    if not isinstance(resume, bool | str | os.PathLike) or resume == "":
        raise ConfigError(f"resume={resume!r} must be True, False, 'auto', or the path of a checkpoint")
    if isinstance(resume, str) and resume.lower() in _YES and resume not in (BEST, LAST):
        raise ConfigError(
            f"resume={resume!r} would be taken for a path; write True for the newest checkpoint in work_dir, "
            "'auto' for the same if there is one, or the path of a checkpoint"
        )
    if form.load_from is None:
        return
    wanted = LoadFrom.parse(form.load_from)
    if resume not in (False, "auto"):
        shown = True if isinstance(resume, bool) else redacted(os.fspath(resume))
        raise ConfigError(
            f"resume={shown!r} and {wanted} both say where weights come from; "
            "give one of them, or resume='auto', which falls back on load_from where there is no checkpoint"
        )


def _refuse_other_kinds(form: Form) -> None:
    if form.default_hooks is not None and not isinstance(form.default_hooks, Mapping):
        raise ConfigError(
            f"default_hooks must be a dict of {', '.join(DEFAULT_HOOKS)}, got a "
            f"{type(form.default_hooks).__name__}; hooks of your own go into custom_hooks=[...]"
        )
    given = form.custom_hooks
    if not isinstance(given, list | tuple):
        shown = repr(given) if isinstance(given, str | Mapping | None) else type(given).__name__
        raise ConfigError(f"custom_hooks={shown} must be a list of hooks; write custom_hooks=[...]")


def _check_loaders(form: Form, job: Job) -> None:
    loaders, evaluator = form.of(job, "dataloader"), form.of(job, "evaluator")
    named = dict(loaders) if names_loaders(loaders) else {"": loaders}
    if job == "train" and len(named) > 1 and not of_the_user(form, job):
        raise ConfigError(
            f"train_dataloader names {len(named)} loaders, and nothing says how they take turns; write "
            "dict(type='MultiLoader', loaders=dict(...), mode='round_robin')"
        )
    for name, one in named.items():
        where = f"{job}_dataloader.{name}".rstrip(".")
        with part(where):
            check_data(one, where, train=job == "train")
    if evaluator is not None:
        with part(f"{job}_evaluator"):
            _check_evaluators(form, job, named, evaluator)


def _check_evaluators(form: Form, job: Job, named: Mapping[str, Any], evaluator: Any) -> None:
    if not of_the_user(form, job):
        for name, one in evaluators_of(job, named, evaluator).items():
            check_evaluator(one, f"{job}_evaluator" if one is evaluator else f"{job}_evaluator.{name}")
    elif not isinstance(evaluator, Mapping) or "type" in evaluator or "metrics" in evaluator:
        check_evaluator(evaluator, f"{job}_evaluator")
