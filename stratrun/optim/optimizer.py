"""Optimizers out of what the user gave: an object, a name, a dict, or a factory."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from stratrun.errors import ConfigError, nearest
from stratrun.optim import fused
from stratrun.registry import OPTIMIZERS
from stratrun.registry.arguments import at
from stratrun.registry.spec import edited

Factory = Callable[[list[nn.Parameter]], Optimizer]

DEFAULT = "optimizer"
"""Name of the only optimizer, where the user named none."""


def is_several(spec: Any) -> bool:
    """Whether a spec describes several optimizers by name, rather than one."""
    return (
        isinstance(spec, Mapping) and "type" not in spec and bool(spec) and all(map(_is_one, spec.values()))
    )


def specs(spec: Any) -> dict[str, Any]:
    """One spec for each optimizer, by name."""
    return dict(spec) if is_several(spec) else {DEFAULT: spec}


def check(spec: Any) -> None:
    """Refuse what could not be built, building nothing.

    Raises:
        ConfigError: an unknown optimizer, an argument that it does not take, or several of them
            without `params` that say which part of the model is whose.
    """
    several = is_several(spec)
    for name, one in specs(spec).items():
        where = f"optimizer.{name}" if several else "optimizer"
        if isinstance(one, Mapping):
            _refuse_unnamed(one, several, where)
            OPTIMIZERS.check(edited(one, drop=["params"]), where=where, given=("params",))
            _refuse_text(one, where)
        elif isinstance(one, str | type):
            OPTIMIZERS.check(one, where=where, given=("params",))
        elif not isinstance(one, Optimizer) and not callable(one):
            raise ConfigError(
                f"{where}: a {type(one).__name__} is no optimizer; give a dict such as "
                "dict(type='AdamW', lr=1e-3), an optimizer, a function of the parameters that returns one, "
                "or a dict of several by name"
            )


def build(spec: Any, module: nn.Module) -> dict[str, Optimizer]:
    """The optimizers of a spec over the parameters of `module` that require gradients.

    Raises:
        ConfigError: `params` names no part of the model, the model has nothing to train, or a
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
            built[name] = _made(one, parameters, where)
    return built


def _of_class(
    spec: Mapping[str, Any] | str | type, parameters: list[nn.Parameter], module: nn.Module, where: str
) -> Optimizer:
    if isinstance(spec, Mapping):
        spec = edited(spec, drop=["params"])
    entry, options = OPTIMIZERS.check(spec, where=where, given=("params",))
    if fused.pays(entry, options, parameters, module):
        spec = edited(spec if isinstance(spec, Mapping) else {"type": entry}, put={"fused": True})
    built: Optimizer = OPTIMIZERS.build(spec, where=where, params=parameters)
    fused.keep_momentum_whole(built)
    fused.lay_out_gradients(built)
    return built


def told(optimizers: Mapping[str, Optimizer]) -> list[str]:
    """How updates are made, where not as torch would by itself."""
    return fused.told(optimizers, DEFAULT)


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
        if isinstance(value, str) and key not in ("type", "params"):
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
    if several and "params" not in spec:
        raise ConfigError(
            f"{where} does not say which parameters it updates; with several optimizers add "
            "params='name_of_a_submodule' to each"
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


def _select(module: nn.Module, part: str | list[str] | None, where: str) -> list[nn.Parameter]:
    """The parameters of all the module, or of the named submodules."""
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
    parameters = list(chosen.values())
    if not any(p.requires_grad for p in parameters):
        raise ConfigError(
            f"{where}: none of the model's {len(chosen)} parameters requires a gradient, so there is nothing "
            "to train; unfreeze some with requires_grad_(True)"
        )
    return parameters
