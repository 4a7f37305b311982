"""Parameters in groups, each with the options that rules give it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from torch import nn
from torch.optim import Optimizer

from stratrun.blocks.select import fits
from stratrun.errors import ConfigError, nearest
from stratrun.optim.depths import depths_of
from stratrun.optim.kinds import KINDS, kinds_of
from stratrun.optim.paramwise import MULTS, Paramwise, Rule

_SHOWN = 6
_NO_LAYER = -1
Key = tuple[int, int, tuple[tuple[str, float], ...]]
"""Depth, number of the rule by name, and factors."""


@dataclass(slots=True)
class Group:
    """Parameters with the same options."""

    mults: Mapping[str, float]
    options: Mapping[str, Any]
    params: list[nn.Parameter] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    """Which of them something was said of; empty text for parameters that are of none."""
    name: str = ""

    @property
    def said(self) -> list[str]:
        """The kinds that set it apart."""
        return [] if "" in self.kinds else [kind for kind in KINDS if kind in self.kinds]


class Cut:
    """The groups of one optimizer, in the same order whatever the parameters' is.

    Args:
        module: What names are relative to.
        parameters: Those of the optimizer, by name.

    Raises:
        ConfigError: a rule is of no use, or nothing of the model repeats.
    """

    def __init__(
        self, wanted: Paramwise, module: nn.Module, parameters: Mapping[str, nn.Parameter], where: str
    ) -> None:
        self._wanted = wanted
        self._kinds = kinds_of(module)
        self._depths: dict[str, int] = {}
        self._deepest = 0
        where = f"{where}.paramwise"
        if wanted.layer_decay is not None:
            self._depths, self._deepest = depths_of(
                module, dict(parameters), wanted.blocks, f"{where}: layer_decay"
            )
        self._rules = _matched(wanted.rules, module, parameters, f"{where}.rules")
        found: dict[Key, Group] = {}
        for name, parameter in parameters.items():
            self._put(found, name, parameter)
        ordered = sorted(found.items(), key=lambda one: (one[0][:2], list(map(KINDS.index, one[1].said))))
        self._names(dict(ordered))
        self.groups: list[Group] = [group for _, group in ordered]

    def given(self) -> list[dict[str, Any]]:
        """What an optimizer is built with."""
        return [{"params": one.params, "name": one.name, **one.options} for one in self.groups]

    def finish(self, optimizer: Optimizer, where: str) -> None:
        """Multiply what the optimizer has made its own.

        Raises:
            ConfigError: it has not what is to be multiplied or was set.
        """
        for one, group in zip(self.groups, optimizer.param_groups, strict=True):
            for mult, factor in one.mults.items():
                option = MULTS[mult]
                if option not in group:
                    raise ConfigError(f"{where}: {type(optimizer).__name__} has no {option} to multiply")
                group[option] = group[option] * factor
            for option in one.options:
                if option not in optimizer.defaults:
                    raise ConfigError(
                        f"{where}.paramwise: {option} is no option of a group of {type(optimizer).__name__}; "
                        f"{nearest(option, optimizer.defaults)}"
                    )

    def _put(self, found: dict[Key, Group], name: str, parameter: nn.Parameter) -> None:
        number = self._rules.get(parameter, -1)
        rule = self._wanted.rules[number] if number >= 0 else None
        options = {} if rule is None else rule.options
        # A learning rate that is given outright is that of all depths.
        depth = _NO_LAYER if "lr" in options else self._depths.get(name, _NO_LAYER)
        factors: dict[str, float] = {}
        said = set[str]()
        for mult in MULTS:
            factors[mult], kind = self._factor(rule, mult, parameter)
            said |= {kind} if factors[mult] != 1.0 else set()
        if depth != _NO_LAYER:
            factors["lr_mult"] *= self._decay_at(depth)
        mults = {mult: factor for mult, factor in factors.items() if factor != 1.0}
        group = found.setdefault((depth, number, tuple(mults.items())), Group(mults, options))
        group.params.append(parameter)
        group.kinds |= said - {""} or {""}

    def _decay_at(self, depth: int) -> float:
        """BEiT (Bao et al. 2021, arXiv:2106.08254): each layer has the rate of the next times the decay."""
        decay = self._wanted.layer_decay
        assert decay is not None
        return decay ** (self._deepest - depth)

    def _factor(self, rule: Rule | None, mult: str, parameter: nn.Parameter) -> tuple[float, str]:
        """That of a rule by name; else of the first kind of which something is said, and that kind."""
        said = None if rule is None else rule.says(mult)
        if said is not None:
            return said, ""
        factors = self._wanted.kinds.get(mult, {})
        kind = next((one for one in self._kinds[parameter] if one in factors), "")
        return factors.get(kind, 1.0), kind

    def _names(self, found: Mapping[Key, Group]) -> None:
        width, taken = len(str(self._deepest)), set[str]()
        for (depth, number, _), group in found.items():
            layer = "" if depth == _NO_LAYER else f"layer_{depth:0{width}d}"
            rule = self._wanted.rules[number].name if number >= 0 else ""
            name = "/".join(filter(None, (layer, rule, "_".join(group.said)))) or "default"
            group.name, again = name, 1
            while group.name in taken:
                again += 1
                group.name = f"{name}_{again}"
            taken.add(group.name)


def told(name: str, optimizer: Optimizer) -> list[str]:
    """A line on the groups of an optimizer, if it has several that have names."""
    groups = optimizer.param_groups
    names = [group["name"] for group in groups if "name" in group]
    if len(groups) < 2 or len(names) < len(groups):
        return []
    rates = sorted({float(group["lr"]) for group in groups if "lr" in group})
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    span = f", lr {rates[0]:.4g} to {rates[-1]:.4g}" if len(rates) > 1 else ""
    return [f"{name}: {len(groups)} groups of parameters{span}: {shown}"]


def told_shared(optimizers: Mapping[str, Optimizer]) -> list[str]:
    """A line on each two optimizers that update the same parameters, which is seldom meant."""
    held = {n: {p for group in one.param_groups for p in group["params"]} for n, one in optimizers.items()}
    shared = {(a, b): len(held[a] & held[b]) for a, b in combinations(held, 2)}
    return [
        f"optimizer.{a} and optimizer.{b}: both update the same {count} parameters, by params= of each"
        for (a, b), count in shared.items()
        if count
    ]


def _matched(
    rules: Sequence[Rule], module: nn.Module, parameters: Mapping[str, nn.Parameter], where: str
) -> dict[nn.Parameter, int]:
    """The number of the rule that each parameter has: the first that fits one of its names."""
    own = set(parameters.values())
    named = [(name, p) for name, p in module.named_parameters(remove_duplicate=False) if p in own]
    found: dict[nn.Parameter, int] = {}
    first = {rule.name: number for number, rule in reversed(list(enumerate(rules)))}
    for rule in rules:
        # What a part of the model is called means all that is in it.
        steps = [*rule.pattern.split("."), "**"]
        fitting = {p for name, p in named if fits(name.split("."), steps)}
        if not fitting:
            raise ConfigError(f"{where}: {rule.pattern!r} fits no parameter; {_near(rule.pattern, named)}")
        if fitting <= found.keys():
            before = sorted({rules[found[p]].pattern for p in fitting})
            raise ConfigError(
                f"{where}: {rule.pattern!r} is of no use, as {', '.join(map(repr, before))} before it takes "
                "all that it fits; the first rule that fits counts, so put it before that"
            )
        for parameter in fitting - found.keys():
            found[parameter] = first[rule.name]
    return found


def _near(pattern: str, named: Iterable[tuple[str, nn.Parameter]]) -> str:
    """The parameter, or the part that some are in, that may be meant; else what the model is made of."""
    steps = [name.split(".") for name, _ in named]
    known = {".".join(one[:length]) for one in steps for length in range(1, len(one) + 1)}
    hint = nearest(pattern, known)
    return hint if hint.startswith("did you mean") else nearest(pattern, {one[0] for one in steps})
