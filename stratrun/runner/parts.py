"""Parts of a run out of what the form says: first checked, all of them, then built one by one."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn import functional

from stratrun.errors import ConfigError, MissingArgumentError, nearest
from stratrun.hooks import Hook
from stratrun.hooks.dispatch import HookList, parse_priority
from stratrun.loops import BaseLoop
from stratrun.loops.evaluate import names_loaders
from stratrun.optim import optimizer as optimizers
from stratrun.optim import scheduler as schedules
from stratrun.registry import HOOKS, LOOPS, MODELS
from stratrun.registry.arguments import parameters_of
from stratrun.registry.spec import edited
from stratrun.runner.form import DEFAULT_HOOKS, Form, Job, default_hooks

_LOOPS = {"val": "ValLoop", "test": "TestLoop", "predict": "PredictLoop"}


def check(form: Form, job: Job) -> None:
    """Refuse what could not be built for this job, building nothing.

    Raises:
        ConfigError: names the argument, the value and the nearest that would do.
    """
    check_model(form.model)
    check_loss(form.loss)
    check_hooks(form)
    if job == "train" and form.optimizer is not None:
        optimizers.check(form.optimizer)
        schedules.check(form.param_scheduler, list(optimizers.specs(form.optimizer)))
    for one in ("train", "val") if job == "train" and form.validates else (job,):
        check_loop(form, one)


def check_model(spec: Any) -> None:
    if isinstance(spec, str | type | Mapping):
        MODELS.check(spec, where="model")
    elif not isinstance(spec, nn.Module) and not callable(spec):
        raise ConfigError(
            f"model={spec!r} is no model; give an nn.Module, dict(type=...), or a function that returns one"
        )


def build_model(spec: Any) -> nn.Module:
    """An object as it is, a registered class, or what a function of no argument returns."""
    built = MODELS.build(spec, where="model")
    if not isinstance(built, nn.Module) and callable(built):
        built = built()
    if not isinstance(built, nn.Module):
        raise ConfigError(f"model: {_name(spec)} gave {type(built).__name__}, which is no nn.Module")
    return built


def check_loss(spec: Any) -> None:
    if isinstance(spec, str) and _functional(spec) is not None:
        return
    if isinstance(spec, str | type | Mapping):
        MODELS.check(spec, where="loss")
    elif spec is not None and not callable(spec):
        raise ConfigError(
            f"loss={spec!r} is no loss; give a function of (outputs, targets), a module such as "
            "nn.CrossEntropyLoss(), or a name such as 'cross_entropy'"
        )


def build_loss(spec: Any) -> Callable[..., Any] | None:
    """A name is that of a function in `torch.nn.functional`, or of a class in `torch.nn`."""
    if isinstance(spec, str) and (found := _functional(spec)) is not None:
        return found
    built: Callable[..., Any] | None = MODELS.build(spec, where="loss")
    return built


def check_hooks(form: Form) -> None:
    for name in form.default_hooks or {}:
        if name not in DEFAULT_HOOKS:
            raise ConfigError(
                f"default_hooks: no default hook is called {name!r}; {nearest(name, DEFAULT_HOOKS)} "
                "A hook of your own goes into custom_hooks"
            )
    named = [(f"default_hooks.{name}", spec) for name, spec in default_hooks(form).items()]
    for where, spec in [*named, *_custom(form)]:
        options, _ = _split_priority(spec)
        if isinstance(options, str | type | Mapping):
            HOOKS.check(options, where=where)
        elif not isinstance(options, Hook):
            raise ConfigError(
                f"{where}: {options!r} is no hook; give a Hook object, a name, or dict(type=...) "
                "of a class that derives from stratrun.hooks.Hook"
            )


def build_hooks(form: Form) -> HookList:
    """The default hooks, then the user's."""
    hooks = HookList()
    named = [(f"default_hooks.{name}", spec) for name, spec in default_hooks(form).items()]
    for where, spec in [*named, *_custom(form)]:
        options, priority = _split_priority(spec)
        hooks.register(HOOKS.build(options, where=where), priority)
    return hooks


def check_loop(form: Form, job: str) -> None:
    spec = loop_spec(form, job)
    if isinstance(spec, BaseLoop):
        return
    where = f"{job}_cfg"
    entry, _ = LOOPS.check(spec, where=where, given=("runner", "dataloader"), offer=("evaluator",))
    evaluator = (parameters_of(entry) or {}).get("evaluator")
    required = evaluator is not None and evaluator.default is evaluator.empty
    if required and form.of(job, "evaluator") is None and "evaluator" not in spec:
        raise MissingArgumentError(
            f"{job}_dataloader is given, but no {job}_evaluator to measure on it; "
            f"give for example {job}_evaluator=dict(type='Accuracy')"
        )


def loop_spec(form: Form, job: str) -> Any:
    """What `train_cfg` and its like say, with the loop's type filled in."""
    spec = form.of(job, "cfg")
    if isinstance(spec, str | type):
        return {"type": spec}
    if isinstance(spec, BaseLoop):
        return spec
    if spec is not None and not isinstance(spec, Mapping):
        raise ConfigError(f"{job}_cfg={spec!r} must be a dict, such as {_example(job)}")
    spec = {} if spec is None else spec
    if "type" in spec:
        return spec
    if job != "train":
        return edited(spec, put={"type": _LOOPS[job]})
    return _train_spec(spec)


def _train_spec(spec: Mapping[str, Any]) -> Any:
    by_epoch = spec.get("by_epoch", "max_iters" not in spec)
    if not isinstance(by_epoch, bool):
        raise ConfigError(f"train_cfg: by_epoch={by_epoch!r} must be True or False")
    wanted, other = ("max_epochs", "max_iters") if by_epoch else ("max_iters", "max_epochs")
    if wanted not in spec and other in spec:
        raise ConfigError(
            f"train_cfg: by_epoch={by_epoch} needs {wanted}, but {other} is given; "
            f"write by_epoch={not by_epoch}, or {wanted}=..."
        )
    name = "EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop"
    return edited(spec, drop=["by_epoch"], put={"type": name})


def build_loop(runner: Any, form: Form, job: str) -> BaseLoop:
    spec = loop_spec(form, job)
    # Loaders are built here, so that a loop of any kind gets one that is made for its job.
    name, loaders, train = f"{job}_dataloader", form.of(job, "dataloader"), job == "train"
    if names_loaders(loaders):
        feeds = {key: runner.build_dataloader(one, name=f"{name}.{key}") for key, one in loaders.items()}
    else:
        feeds = runner.build_dataloader(loaders, train=train, name=name)
    given = {"runner": runner, "dataloader": feeds}
    loop = LOOPS.build(spec, where=f"{job}_cfg", offer={"evaluator": form.of(job, "evaluator")}, **given)
    if not isinstance(loop, BaseLoop):
        raise ConfigError(f"{job}_cfg: {_name(spec)} is no loop; derive it from stratrun.runner.BaseLoop")
    loop.job = job
    return loop


def _custom(form: Form) -> list[tuple[str, Any]]:
    return [(f"custom_hooks.{i}", spec) for i, spec in enumerate(form.custom_hooks)]


def _split_priority(spec: Any) -> tuple[Any, int | None]:
    if not isinstance(spec, Mapping) or "priority" not in spec:
        return spec, None
    return edited(spec, drop=["priority"]), parse_priority(spec["priority"])


def _functional(name: str) -> Callable[..., Any] | None:
    found = getattr(functional, name, None)
    return found if callable(found) and not name.startswith("_") and name.islower() else None


def _example(job: str) -> str:
    return "dict(by_epoch=True, max_epochs=10)" if job == "train" else f"dict(type={_LOOPS[job]!r})"


def _name(spec: Any) -> str:
    kind = spec.get("type") if isinstance(spec, Mapping) else spec
    return kind if isinstance(kind, str) else getattr(kind, "__name__", type(kind).__name__)
