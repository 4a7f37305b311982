"""Parts of a run out of what the form says, built one by one. `checks` comes first."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.nn import functional

from stratrun.engine import NonFinite
from stratrun.errors import ConfigError, UnknownNameError, nearest
from stratrun.hooks import Hook
from stratrun.hooks.dispatch import HookList, parse_priority
from stratrun.loops import BaseLoop
from stratrun.loops.evaluate import names_loaders
from stratrun.registry import HOOKS, LOOPS, MODELS
from stratrun.registry.arguments import at
from stratrun.registry.spec import edited
from stratrun.runner.collector import CollectorHook
from stratrun.runner.developing import parse_dev
from stratrun.runner.environment import parse_env
from stratrun.runner.form import Form, default_hooks
from stratrun.runner.rollback import RollbackHook
from stratrun.runner.strict_sync import StrictSync

LOOPS_OF = {"val": "ValLoop", "test": "TestLoop", "predict": "PredictLoop"}
"""The loop of a job where none is named. That of training depends on what it counts."""


def build_model(spec: Any) -> nn.Module:
    """An object as it is, a registered class, or what a function of no argument returns."""
    built = MODELS.build(spec, where="model")
    if not isinstance(built, nn.Module) and callable(built):
        built = built()
    if not isinstance(built, nn.Module):
        raise ConfigError(f"model: {_name(spec)} gave {type(built).__name__}, which is no nn.Module")
    return built


def build_loss(spec: Any) -> Callable[..., Any] | None:
    """A name is that of a function in `torch.nn.functional`, or of a class in `torch.nn`."""
    if isinstance(spec, str):
        return functional_loss(spec) or MODELS.build(spec, where="loss")
    built: Callable[..., Any] | None = MODELS.build(spec, where="loss")
    return built


def hook_specs(form: Form) -> list[tuple[str, Any]]:
    """Every hook of the form, and what the user calls it: the default hooks, then the user's."""
    named = [(f"default_hooks.{name}", spec) for name, spec in default_hooks(form).items()]
    return [*named, *((f"custom_hooks.{i}", spec) for i, spec in enumerate(form.custom_hooks))]


def build_hooks(form: Form) -> HookList:
    """The default hooks, then the user's."""
    hooks = HookList()
    for where, spec in hook_specs(form):
        options, priority = split_priority(spec, where)
        hooks.register(HOOKS.build(options, where=where), priority)
    settings = NonFinite.parse(form.non_finite)
    if settings.policy == "rollback":
        hooks.register(RollbackHook(settings))
    environment = parse_env(form.env_cfg)
    if environment.gc == "paused":
        hooks.register(CollectorHook())
    for hook in _developing(form):
        hooks.register(hook)
    if environment.strict_sync:
        watch = StrictSync()
        hooks.register(watch)
        hooks.around = watch.around
    return hooks


def _developing(form: Form) -> list[Hook]:
    settings = parse_dev(form.dev_cfg)
    # Only now, as most runs have neither.
    if settings.fast_dev_run:
        from stratrun.runner.trial import TrialHook

        return [TrialHook()]
    if settings.sanity_batches is not None:
        from stratrun.runner.sanity import SanityHook

        return [SanityHook(settings.sanity_batches)]
    return []


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
        return edited(spec, put={"type": LOOPS_OF[job]})
    return _train_spec(spec)


def _train_spec(spec: Mapping[str, Any]) -> Any:
    by_epoch = spec.get("by_epoch", "max_epochs" in spec or "max_iters" not in spec)
    if not isinstance(by_epoch, bool):
        raise ConfigError(f"train_cfg: by_epoch={by_epoch!r} must be True or False")
    wanted, other = ("max_epochs", "max_iters") if by_epoch else ("max_iters", "max_epochs")
    if wanted in spec and other in spec:
        raise ConfigError(
            f"train_cfg: {wanted}={spec[wanted]!r} and {other}={spec[other]!r} both say how long to train; "
            f"give one of them{at(getattr(spec, 'places', {}), other)}"
        )
    if wanted not in spec and other in spec:
        raise ConfigError(
            f"train_cfg: by_epoch={by_epoch} needs {wanted}, but {other} is given; "
            f"write by_epoch={not by_epoch}, or {wanted}=..."
        )
    if wanted not in spec and not any(get_close_matches(str(key), [wanted]) for key in spec):
        raise ConfigError(f"train_cfg does not say how long to train; add {wanted}=...")
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


def validate(runner: Any, loop: BaseLoop) -> None:
    """Run a validation within a job."""
    runner.engine.start_evaluation()
    # A hook may ask for it between a batch and what is still to be done with that.
    with runner.engine.batch.kept():
        loop.run()
    if runner.control.broke_off:
        runner.engine.evaluating.undo()
    if runner.training:
        runner.engine.start_training()


def split_priority(spec: Any, where: str) -> tuple[Any, int | None]:
    if not isinstance(spec, Mapping) or "priority" not in spec:
        return spec, None
    try:
        priority = parse_priority(spec["priority"])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}{at(getattr(spec, 'places', {}), 'priority')}") from error
    return edited(spec, drop=["priority"]), priority


def functional_loss(name: str) -> Callable[..., Any] | None:
    """The function in `torch.nn.functional`; None for a name of something in `MODELS`.

    Raises:
        UnknownNameError: it is neither.
    """
    found = getattr(functional, name, None)
    if callable(found) and not name.startswith("_") and name.islower():
        return found  # type: ignore[no-any-return]
    known = [key for key in vars(functional) if key.islower() and ("loss" in key or "entropy" in key)]
    try:
        MODELS.check(name, where="loss")
    except UnknownNameError as error:
        if name != name.lower() and nearest(name, MODELS.names()).startswith("did"):
            raise
        raise UnknownNameError(
            f"loss={name!r} is no function of torch.nn.functional, and no registered class; "
            f"{nearest(name, known)}"
        ) from error
    return None


def _example(job: str) -> str:
    return "dict(by_epoch=True, max_epochs=10)" if job == "train" else f"dict(type={LOOPS_OF[job]!r})"


def _name(spec: Any) -> str:
    kind = spec.get("type") if isinstance(spec, Mapping) else spec
    return kind if isinstance(kind, str) else getattr(kind, "__name__", type(kind).__name__)
