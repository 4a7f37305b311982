from __future__ import annotations

import re
from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar

from stratrun.errors import ConfigError, nearest
from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS
from stratrun.spread import local_part

if TYPE_CHECKING:
    from torch import Tensor

    from stratrun.context import RunContext


@HOOKS.register_module()
class ParametersHook(Hook):
    """Logs norms of parameters and of their gradients, every `interval` iterations, into files.

    For each parameter, or each module `depth` levels down: `grad_norm/<name>` of the gradients as the
    optimizer gets them (averaged over processes, clipped), `weight_norm/<name>` from before the update, and
    with `updates`, `update_ratio/<name>`, the norm of what the update changed over that of the weights.
    Norms are those of whole tensors, whoever holds their parts. Between, nothing is computed.

    Args:
        depth: Puts together the parameters whose names begin with the same so many parts; None keeps
            each apart.
        include: Regular expression that is searched for in the names of parameters.
        updates: Takes a copy of the weights for the one update that is looked at.
    """

    # Ahead of saving, so that a resumed run has looked at the same updates.
    priority = 65
    goes_on: ClassVar[None] = None

    def __init__(
        self, interval: int = 100, *, depth: int | None = None, include: str = "", updates: bool = False
    ) -> None:
        for name, value in (("interval", interval), ("depth", depth)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"ParametersHook: {name}={value!r} must be a whole number of at least 1")
        if not isinstance(include, str):
            raise ConfigError(f"ParametersHook: include={include!r} must be a regular expression")
        try:
            self._include = re.compile(include)
        except re.error as error:
            raise ConfigError(
                f"ParametersHook: include={include!r} is no regular expression: {error}"
            ) from error
        self.interval = interval
        self.depth = depth
        self.updates = updates
        self._looked = 0
        self._parameters: dict[str, Tensor] = {}
        self._seen: dict[str, dict[str, float]] | None = None
        self._before: dict[str, Tensor] = {}

    def before_train(self, runner: RunContext) -> None:
        # Less than that where the hook comes from another run.
        self._looked = min(self._looked, runner.iter)
        self._seen, self._before = None, {}
        named = dict(runner.model.named_parameters())
        self._parameters = {name: p for name, p in named.items() if self._include.search(name)}
        if not self._parameters:
            pattern = self._include.pattern
            raise ConfigError(
                f"ParametersHook: include={pattern!r} is in no parameter's name; {nearest(pattern, named)}"
            )

    def before_train_iter(self, runner: RunContext) -> None:
        # An accumulation window may still be open when it is due: then its end is looked at.
        if (runner.iter + 1) // self.interval > self._looked // self.interval and self._seen is None:
            runner.engine.gauges.see_update(lambda: self._look(runner))

    def after_train_iter(self, runner: RunContext) -> None:
        if self._seen is None:
            return
        seen, self._seen = self._seen, None
        self._looked = runner.iter
        if self._before:
            changes = {name: local_part(p) - self._before[name] for name, p in self._parameters.items()}
            seen["update"] = runner.engine.gauges.squares(changes, parts_of=self._parameters)
            self._before = {}
        runner.log(self._values(seen), kind="parameters")

    def state_dict(self) -> dict[str, Any]:
        return {"looked": self._looked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._looked = state["looked"]

    def _look(self, runner: RunContext) -> None:
        gauges, parameters = runner.engine.gauges, self._parameters
        self._seen = {
            "grad": gauges.squares({name: p.grad for name, p in parameters.items()}),
            "weight": gauges.squares(parameters),
        }
        if self.updates:
            self._before = {name: local_part(p).clone() for name, p in parameters.items()}

    def _values(self, seen: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        norms: dict[str, dict[str, float]] = {}
        for what, squares in seen.items():
            sums: dict[str, float] = {}
            for name, square in squares.items():
                group = name if self.depth is None else ".".join(name.split(".")[: self.depth])
                sums[group] = sums.get(group, 0.0) + square
            norms[what] = {group: sqrt(one) for group, one in sums.items()}
        values = {
            f"{what}_norm/{name}": norms[what][name] for what in ("grad", "weight") for name in norms[what]
        }
        for name, change in norms.get("update", {}).items():
            weight = norms["weight"][name]
            values[f"update_ratio/{name}"] = change / weight if weight else 0.0
        return values
