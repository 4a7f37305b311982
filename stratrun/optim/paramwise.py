"""What a user says about single parameters: rules by name and by kind, and by depth. Nothing is built."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from stratrun.blocks import check_spec
from stratrun.errors import ConfigError, nearest
from stratrun.optim.kinds import KINDS
from stratrun.registry.arguments import at, name_of, parameters_of

MULTS = {"lr_mult": "lr", "decay_mult": "weight_decay"}
"""Factors, and the options that they are for."""
_BY_KIND = {f"{kind}_{mult}": (kind, mult) for kind in KINDS for mult in MULTS}
_KEYS = ("rules", "layer_decay", *_BY_KIND)
_WAYS = ("foreach", "fused", "capturable", "differentiable")


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for parameters whose names a pattern fits."""

    pattern: str
    name: str
    lr_mult: float | None = None
    decay_mult: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the optimizer, set outright."""

    def says(self, mult: str) -> float | None:
        """Its factor for a learning rate or a weight decay; 1 where it sets that outright."""
        if MULTS[mult] in self.options:
            return 1.0
        given: float | None = getattr(self, mult)
        return given


@dataclass(frozen=True, slots=True)
class Paramwise:
    """Rules for groups of parameters, held against themselves and the class of the optimizer."""

    rules: tuple[Rule, ...] = ()
    kinds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Factors by kind, for ``lr_mult`` and ``decay_mult``."""
    layer_decay: float | None = None
    blocks: Any = None

    @classmethod
    def parse(cls, spec: Any, entry: Callable[..., Any], where: str) -> "Paramwise":
        """
        Args:
            entry: The class of the optimizer.

        Raises:
            ConfigError: a key or a value makes no sense, alone or with the others.
        """
        where = f"{where}.paramwise"
        if not isinstance(spec, Mapping):
            raise ConfigError(
                f"{where}={spec!r} must be a dict, such as dict(norm_decay_mult=0.0, bias_decay_mult=0.0, "
                "rules={'backbone': dict(lr_mult=0.1)})"
            )
        for key in spec:
            if key not in _KEYS:
                raise ConfigError(f"{where} takes no {key!r}; {nearest(str(key), _KEYS)}{_at(spec, key)}")
        kinds: dict[str, dict[str, float]] = {}
        for key, (kind, mult) in _BY_KIND.items():
            if key in spec:
                kinds.setdefault(mult, {})[kind] = _factor(spec, key, where)
                _refuse_untaken(mult, entry, f"{where}: {key}")
        decay, blocks = _layers(spec, where)
        return cls(_rules(spec.get("rules"), entry, f"{where}.rules"), kinds, decay, blocks)


def _rules(spec: Any, entry: Callable[..., Any], where: str) -> tuple[Rule, ...]:
    if spec is None:
        return ()
    if not isinstance(spec, Mapping):
        raise ConfigError(
            f"{where}={spec!r} must be a dict of name patterns and what holds for them, such as "
            "{'backbone': dict(lr_mult=0.1), '**.gamma': dict(weight_decay=0.0)}"
        )
    rules: list[Rule] = []
    for pattern, options in spec.items():
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(f"{where}: {pattern!r} is no pattern of names{_at(spec, pattern)}")
        rules.append(_rule(pattern, options, entry, f"{where}: {pattern!r}"))
    said: dict[str, Rule] = {}
    for rule in rules:
        first = said.setdefault(rule.name, rule)
        if _content(first) != _content(rule):
            raise ConfigError(
                f"{where}: {first.pattern!r} and {rule.pattern!r} are both called {rule.name!r}, and say "
                "different things; give each a name=... of its own"
            )
    return tuple(rules)


def _rule(pattern: str, options: Any, entry: Callable[..., Any], where: str) -> Rule:
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where}: {options!r} must be a dict, such as dict(lr_mult=0.1)")
    own, own_keys = _own_options(entry), (*MULTS, "name")
    for key in options:
        if key in _WAYS:
            raise ConfigError(
                f"{where}: {key} says how updates are computed; give it for the whole optimizer"
                f"{_at(options, key)}"
            )
        if key not in own_keys and own is not None and key not in own:
            hint = nearest(str(key), [*own_keys, *own])
            raise ConfigError(f"{where} takes no {key!r}; {hint}{_at(options, key)}")
    for mult, option in MULTS.items():
        if mult in options and option in options:
            raise ConfigError(
                f"{where}: {option}={options[option]!r} and {mult}={options[mult]!r} both say what "
                f"{option} is; give one of them{_at(options, mult)}"
            )
        if mult in options:
            _refuse_untaken(mult, entry, where)
        if option in options:
            _factor(options, option, where)
    name = options.get("name", _name_of(pattern))
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: name={name!r} must be a string{_at(options, 'name')}")
    return Rule(
        pattern,
        name,
        lr_mult=_factor(options, "lr_mult", where) if "lr_mult" in options else None,
        decay_mult=_factor(options, "decay_mult", where) if "decay_mult" in options else None,
        options={key: value for key, value in options.items() if key not in own_keys},
    )


def _layers(spec: Mapping[str, Any], where: str) -> tuple[float | None, Any]:
    given = spec.get("layer_decay")
    if given is None:
        return None, None
    where = f"{where}: layer_decay"
    blocks = None
    if isinstance(given, Mapping):
        for key in given:
            if key not in ("decay", "blocks"):
                raise ConfigError(f"{where} takes no {key!r}; {nearest(str(key), ['decay', 'blocks'])}")
        blocks = given.get("blocks")
        check_spec(blocks, f"{where}: blocks")
        given = given.get("decay")
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= 1:
        raise ConfigError(
            f"{where}={given!r} must be a number above 0 and at most 1, such as 0.75, or "
            f"dict(decay=0.75, blocks='layers.*'){_at(spec, 'layer_decay')}"
        )
    return float(given), blocks


def _factor(spec: Mapping[str, Any], key: str, where: str) -> float:
    value = spec[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise ConfigError(f"{where}: {key}={value!r} must be a number, 0 or more{_at(spec, key)}")
    return float(value)


def _own_options(entry: Callable[..., Any]) -> list[str] | None:
    """What the class takes, but for the parameters; None where it takes anything."""
    known = parameters_of(entry)
    if known is None or any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return None
    return [name for name in known if name not in ("params", *_WAYS)]


def _refuse_untaken(mult: str, entry: Callable[..., Any], where: str) -> None:
    own, option = _own_options(entry), MULTS[mult]
    if own is not None and option not in own:
        raise ConfigError(f"{where}: {name_of(entry)} has no {option} to multiply; leave it out")


def _content(rule: Rule) -> tuple[Any, ...]:
    return rule.lr_mult, rule.decay_mult, dict(rule.options)


def _name_of(pattern: str) -> str:
    """What a group is called where the user does not say: the steps that stand for themselves."""
    steps = [re.sub(r"[^\w-]+", "_", step).strip("_") for step in pattern.split(".")]
    return ".".join(filter(None, steps)) or "all"


def _at(spec: Mapping[str, Any], key: str) -> str:
    return at(getattr(spec, "places", {}), key)
