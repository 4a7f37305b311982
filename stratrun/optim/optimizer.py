"""Optimizers out of what the user gave: an object, a name, a dict, or a factory."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from stratrun.errors import ConfigError, nearest
from stratrun.optim import fused, groups
from stratrun.optim.paramwise import Paramwise
from stratrun.optim.scaling import Scaling, UpdateSize
from stratrun.problems import part
from stratrun.registry import OPTIMIZERS
from stratrun.registry.arguments import at
from stratrun.registry.spec import edited

Factory = Callable[[list[nn.Parameter]], Optimizer]

DEFAULT = "optimizer"
"""Name of the only optimizer, where the user named none."""
_OURS = ("params", "paramwise", "scale_lr")
_UNKNOWN = UpdateSize()


def is_several(spec: Any) -> bool:
    """Whether a spec describes several optimizers by name, rather than one."""
    return (
        isinstance(spec, Mapping) and "type" not in spec and bool(spec) and all(map(_is_one, spec.values()))
    )


def specs(spec: Any) -> dict[str, Any]:
    """One spec for each optimizer, by name."""
    return dict(spec) if is_several(spec) else {DEFAULT: spec}


def check(spec: Any, update: UpdateSize = _UNKNOWN) -> None:
    """Refuse what could not be built, building nothing.

    Args:
        update: What learning rates may be scaled by.

    Raises:
        ConfigError: an unknown optimizer, an argument that it does not take, rules for parameters that make
            no sense, or several optimizers without `params` that say which part of the model is whose.
    """
    several = is_several(spec)
    for name, one in specs(spec).items():
        where = f"optimizer.{name}" if several else "optimizer"
        with part(where):
            _check_one(one, update, where, several=several)


def _check_one(one: Any, update: UpdateSize, where: str, *, several: bool) -> None:
    if isinstance(one, Mapping):
        with part():
            _refuse_unnamed(one, several, where)
        with part():
            _refuse_foreign_keys(one, where)
        entry, _ = OPTIMIZERS.check(edited(one, drop=_OURS), where=where, given=("params",))
        with part():
            _refuse_text(one, where)
        with part():
            if one.get("paramwise") is not None:
                Paramwise.parse(one["paramwise"], entry, where)
        if one.get("scale_lr") is not None:
            Scaling.parse(one["scale_lr"], where).refuse_unknown(update, where)
    elif isinstance(one, str | type):
        OPTIMIZERS.check(one, where=where, given=("params",))
    elif not isinstance(one, Optimizer) and not callable(one):
        raise ConfigError(
            f"{where}: a {type(one).__name__} is no optimizer; give a dict such as "
            "dict(type='AdamW', lr=1e-3), an optimizer, a function of the parameters that returns one, "
            "or a dict of several by name"
        )


def try_values(spec: Mapping[str, Any] | str | type, where: str) -> Optimizer | None:
    """Have a class of torch look at the values of its arguments, over a parameter of one number.

    Returns:
        What it made; None of what is not of torch.

    Raises:
        ConfigError: it does not take one of them.
    """
    one = edited(spec, drop=_OURS) if isinstance(spec, Mapping) else {"type": spec}
    entry, options = OPTIMIZERS.check(one, where=where, given=("params",))
    if not isinstance(entry, type) or not entry.__module__.startswith("torch.optim"):
        return None
    # The method of torch imports its compiler, which takes seconds.
    tried: Any = type(entry.__name__, (entry,), {"add_param_group": _take_group})
    try:
        made: Optimizer = tried([nn.Parameter(torch.zeros(1, 1))], **options)
    except (TypeError, ValueError, RuntimeError) as error:
        key = next((key for key in options if _speaks_of(str(error), key)), "type")
        raise says(entry, error, where, spec, key) from error
    return made


def says(entry: type, error: Exception, where: str, spec: Any, key: str) -> ConfigError:
    """What a class of torch has said of its arguments, and where the one that it speaks of was given."""
    told = str(error).rstrip(".")
    path = f"{entry.__module__.removesuffix(f'.{entry.__name__.lower()}')}.{entry.__name__}"
    place = at(getattr(spec, "places", {}), key)
    return ConfigError(f"{where}: {entry.__name__} says: {told}; change it, as {path} has it{place}")


def _take_group(optimizer: Optimizer, group: dict[str, Any]) -> None:
    optimizer.param_groups.append({**optimizer.defaults, **group})


def _speaks_of(text: str, key: str) -> bool:
    words = {"lr": "learning rate", "eps": "epsilon", "betas": "beta parameter"}
    return key in re.findall(r"\w+", text) or words.get(key, key) in text.lower()


def build(spec: Any, module: nn.Module, update: UpdateSize = _UNKNOWN) -> dict[str, Optimizer]:
    """The optimizers of a spec over the parameters of `module` that require gradients.

    Args:
        update: What learning rates are scaled by, where the spec says so.

    Raises:
        ConfigError: `params` or a rule names no part of the model, the model has nothing to train, or a
            ready optimizer holds parameters that are not the model's.
    """
    several = is_several(spec)
    built: dict[str, Optimizer] = {}
    for name, one in specs(spec).items():
        where = f"optimizer.{name}" if several else "optimizer"
        if isinstance(one, Optimizer):
            _refuse_foreign(one, module, where)
            built[name] = one
            continue
        part = one.get("params") if isinstance(one, Mapping) else None
        parameters = _select(module, part, where)
        if isinstance(one, Mapping | str | type):
            built[name] = _of_class(one, parameters, module, where)
        else:
            built[name] = _made(one, list(parameters.values()), where)
        scaling = _scaling(one, where)
        if scaling is not None:
            scaling.refuse_unknown(update, where)
            scaling.apply(built[name], update, where)
    return built


def scaled_for(spec: Any, update: UpdateSize) -> dict[str, int | None]:
    """How many samples an update has, for each optimizer whose learning rates were scaled by that."""
    found = {name: _scaling(one, name) for name, one in ({} if spec is None else specs(spec)).items()}
    return {name: one.samples(update) for name, one in found.items() if one is not None}


def told(optimizers: Mapping[str, Optimizer], spec: Any, update: UpdateSize = _UNKNOWN) -> list[str]:
    """How updates are made, where not as torch would by itself, and of which groups."""
    lines = fused.told(optimizers, DEFAULT)
    for name, one in optimizers.items():
        where = DEFAULT if name == DEFAULT else f"optimizer.{name}"
        scaling = _scaling(specs(spec).get(name), where)
        lines += [] if scaling is None else [scaling.told(update, where)]
        lines += groups.told(where, one)
    return lines + groups.told_shared(optimizers)


def _of_class(
    spec: Mapping[str, Any] | str | type,
    parameters: dict[str, nn.Parameter],
    module: nn.Module,
    where: str,
) -> Optimizer:
    paramwise = None
    if isinstance(spec, Mapping):
        paramwise, spec = spec.get("paramwise"), edited(spec, drop=_OURS)
    entry, options = OPTIMIZERS.check(spec, where=where, given=("params",))
    cut = None
    if paramwise is not None:
        cut = groups.Cut(Paramwise.parse(paramwise, entry, where), module, parameters, where)
    held = list(parameters.values())
    ways = [options] if cut is None else [{**options, **group.options} for group in cut.groups]
    if all(fused.pays(entry, one, held, module) for one in ways):
        spec = edited(spec if isinstance(spec, Mapping) else {"type": entry}, put={"fused": True})
    built: Optimizer = OPTIMIZERS.build(spec, where=where, params=held if cut is None else cut.given())
    if cut is not None:
        cut.finish(built, where)
        for group in cut.groups:
            if group.options and entry.__module__.startswith("torch.optim"):
                # Torch looks at values for all groups alone, never at those of one.
                own = edited(spec if isinstance(spec, Mapping) else {"type": entry}, put=dict(group.options))
                OPTIMIZERS.build(own, where=f"{where}.paramwise ({group.name})", params=list(group.params))
    fused.keep_momentum_whole(built)
    fused.lay_out_gradients(built)
    return built


def _scaling(spec: Any, where: str) -> Scaling | None:
    given = spec.get("scale_lr") if isinstance(spec, Mapping) else None
    return None if given is None else Scaling.parse(given, where)


def _made(factory: Factory, parameters: list[nn.Parameter], where: str) -> Optimizer:
    try:
        made = factory(parameters)
    except Exception as error:
        error.add_note(f"while calling {where}=, a function, with the list of parameters to train")
        raise
    if not isinstance(made, Optimizer):
        raise ConfigError(
            f"{where}: the function returned {type(made).__name__}, which is no optimizer; "
            "have it return what it makes"
        )
    return made


def _refuse_text(spec: Mapping[str, Any], where: str) -> None:
    """Numbers in quotes, which torch would compare with numbers."""
    for key, value in spec.items():
        if isinstance(value, str) and key not in ("type", *_OURS):
            try:
                float(value)
            except ValueError:
                continue
            raise ConfigError(
                f"{where}: {spec['type']}: {key}={value!r} is a string; write a number, {key}={value}"
                f"{at(getattr(spec, 'places', {}), key)}"
            )


def _is_one(spec: Any) -> bool:
    return isinstance(spec, Mapping | Optimizer) or callable(spec)


def _refuse_unnamed(spec: Mapping[str, Any], several: bool, where: str) -> None:
    part = spec.get("params")
    names = part if isinstance(part, list | tuple) else [part]
    if not names or not all(isinstance(one, str) for one in names if part is not None):
        raise ConfigError(
            f"{where}: params={part!r} must be the name of a submodule or a parameter, or a list of names"
            f"{at(getattr(spec, 'places', {}), 'params')}"
        )
    if several and "params" not in spec:
        raise ConfigError(
            f"{where} does not say which parameters it updates; with several optimizers add "
            "params='name_of_a_submodule' to each"
        )


def _refuse_foreign_keys(spec: Mapping[str, Any], where: str) -> None:
    """Words of other frameworks, whose near misses here would mislead."""
    for key, here in {"paramwise_cfg": "paramwise=dict(...)", "auto_scale_lr": "scale_lr=dict(...)"}.items():
        if key in spec:
            raise ConfigError(
                f"{where}: {key} is not known here; use {here}{at(getattr(spec, 'places', {}), key)}"
            )


def _refuse_foreign(optimizer: Optimizer, module: nn.Module, where: str) -> None:
    own = set(module.parameters())
    foreign = sum(p not in own for group in optimizer.param_groups for p in group["params"])
    if foreign:
        raise ConfigError(
            f"{where}: {foreign} of the parameters that the given {type(optimizer).__name__} updates are not "
            "the model's (was the model copied or rebuilt after the optimizer was made?); "
            f"give dict(type={type(optimizer).__name__!r}, ...) instead, to have it built in time"
        )


def _select(module: nn.Module, part: str | list[str] | None, where: str) -> dict[str, nn.Parameter]:
    """The parameters of all the module, or of the named submodules, by name."""
    named = dict(module.named_parameters())
    prefixes = [""] if part is None else [part] if isinstance(part, str) else list(part)
    chosen: dict[str, nn.Parameter] = {}
    for prefix in prefixes:
        found = {n: p for n, p in named.items() if not prefix or n == prefix or n.startswith(f"{prefix}.")}
        if not found:
            children = [*(name for name, _ in module.named_modules() if name), *named]
            raise ConfigError(
                f"{where}: params={prefix!r} names no part of the model; {nearest(prefix, children)}"
            )
        chosen.update(found)
    # Frozen ones too, as in a plain loop: without a gradient they stay as they are, and may be thawed later.
    if not any(p.requires_grad for p in chosen.values()):
        raise ConfigError(
            f"{where}: none of the model's {len(chosen)} parameters requires a gradient, so there is nothing "
            "to train; unfreeze some with requires_grad_(True)"
        )
    return chosen
