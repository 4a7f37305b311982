from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stratrun.errors import ConfigError, nearest
from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS
from stratrun.spread import local_part

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from stratrun.context import RunContext


@HOOKS.register_module()
class ActivationsHook(Hook):
    """Logs what modules put out in training, every `interval` iterations, into files.

    For each module, over all values of the batches of all processes: `mean/<name>`, `std/<name>`,
    `largest/<name>` (of absolute values), and `zeros/<name>`, the share of values that are zero, as of units
    behind a ReLU that are dead. Of several outputs it is the first. In other iterations the model is as
    without the hook.

    Args:
        include: Regular expression that is searched for in the names of modules; by default modules without
            others in them are looked at.
    """

    priority = 65

    def __init__(self, interval: int = 100, *, include: str | None = None) -> None:
        if type(interval) is not int or interval < 1:
            raise ConfigError(f"ActivationsHook: interval={interval!r} must be a whole number of at least 1")
        try:
            self._include = None if include is None else re.compile(include)
        except re.error as error:
            raise ConfigError(
                f"ActivationsHook: include={include!r} is no regular expression: {error}"
            ) from error
        self.interval = interval
        self._modules: dict[str, nn.Module] = {}
        self._handles: list[RemovableHandle] = []
        self._seen: dict[str, Tensor] = {}

    def before_train(self, runner: RunContext) -> None:
        self._end()
        named = {name: one for name, one in runner.model.named_modules() if name}
        if self._include is None:
            self._modules = {name: one for name, one in named.items() if not [*one.children()]} or {
                "model": runner.model
            }
            return
        self._modules = {name: one for name, one in named.items() if self._include.search(name)}
        if not self._modules:
            pattern = self._include.pattern
            raise ConfigError(
                f"ActivationsHook: include={pattern!r} is in no module's name; {nearest(pattern, named)}"
            )

    def before_train_iter(self, runner: RunContext) -> None:
        if (runner.iter + 1) % self.interval == 0:
            self._handles = [
                module.register_forward_hook(self._look(name)) for name, module in self._modules.items()
            ]

    def after_train_iter(self, runner: RunContext) -> None:
        if not self._handles:
            return
        seen = self._seen
        self._end()
        names = list(seen)
        # One transfer. A process may have no batch, or go another way through the model.
        rows = torch.stack([seen[name] for name in names]).tolist() if names else []
        everyone = runner.engine.gauges.of_all(list(zip(names, rows, strict=True)))
        runner.log(_values(everyone), kind="activations")

    def on_exception(self) -> None:
        self._end()

    def on_break_off(self) -> None:
        self._end()

    def after_train(self) -> None:
        self._end()

    def _end(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._seen = [], {}

    def _look(self, name: str) -> Callable[..., None]:
        def look(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            output = _first(outputs)
            if output is None or not output.numel():
                return
            with torch.no_grad():
                values = local_part(output.detach()).double()
                sums = [values.sum(), values.square().sum(), (values == 0).sum().double()]
                found = torch.stack([torch.full_like(sums[0], values.numel()), *sums, values.abs().max()])
                if (before := self._seen.get(name)) is not None:
                    found = torch.cat([found[:4] + before[:4], torch.maximum(found[4:], before[4:])])
                self._seen[name] = found

        return look


def _first(outputs: Any) -> Tensor | None:
    """The first tensor of floating point numbers in what a module returned."""
    if isinstance(outputs, Tensor):
        return outputs if outputs.is_floating_point() else None
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    found = map(_first, outputs) if isinstance(outputs, list | tuple) else ()
    return next((one for one in found if one is not None), None)


def _values(everyone: list[list[tuple[str, list[float]]]]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for process in everyone:
        for name, row in process:
            held = sums.setdefault(name, [0.0] * 5)
            sums[name] = [*(a + b for a, b in zip(held[:4], row[:4], strict=True)), max(held[4], row[4])]
    values: dict[str, float] = {}
    for name, (count, total, squares, zeros, largest) in sums.items():
        mean = total / count
        spread = squares / count - mean * mean
        values[f"mean/{name}"] = mean
        # Rounding may leave less than nothing; what is not a number stays so.
        values[f"std/{name}"] = 0.0 if spread < 0 else sqrt(spread)
        values[f"largest/{name}"] = largest
        values[f"zeros/{name}"] = zeros / count
    return values
