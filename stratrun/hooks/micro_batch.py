"""Training steps in as many parts as memory asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from stratrun.errors import ConfigError
from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext


@HOOKS.register_module()
class MicroBatchHook(Hook):
    """Has a training step that runs out of memory made again in 2, 4, ... parts, and those after it too.

    The gradient is that of the whole batch, but for rounding: parts count by their samples, or by the
    `weight` that the step returns. Draws, as those of dropout, and statistics of a batch are of each part.

    Args:
        parts: How many to begin with.
        trials: Updates, from the start of the run, for which steps are tried out. Several processes exchange
            gradients of these when all have computed, and agree; after that they exchange while they compute,
            and a step that runs out of memory ends the run. None tries out all of them.
        find: Look at the start for the most samples that fit at once, by doubling and bisection, and begin
            with the parts that this makes: with True among the samples of the first batch, or up to a
            number, for which those are repeated.
    """

    goes_on: ClassVar[None] = None

    def __init__(self, parts: int = 1, *, trials: int | None = 20, find: bool | int = False) -> None:
        _check("parts", parts, 1)
        if trials is not None:
            _check("trials", trials, 0, ", or None for all updates")
        if not isinstance(find, bool):
            _check("find", find, 1, ", or True")
        self._parts = parts
        self._trials = trials
        self._find = find
        self._state: dict[str, Any] = {"parts": parts, "tried": 0, "found": None}
        self._run: RunContext | None = None

    def before_train(self, runner: RunContext) -> None:
        runner.engine.splitting.begin(self._parts, self._trials, self._find)
        self._run = runner
        self._tell()

    def state_dict(self) -> dict[str, Any]:
        if self._run is not None:
            splitting = self._run.engine.splitting
            self._state = {key: getattr(splitting, key) for key in self._state}
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = {**state, "parts": max(self._parts, state["parts"])}
        self._tell()

    def _tell(self) -> None:
        if self._run is not None:
            for key, value in self._state.items():
                setattr(self._run.engine.splitting, key, value)


def _check(name: str, value: int, least: int, more: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"MicroBatchHook: {name}={value!r} must be a whole number, at least {least}{more}")
