from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch.nn.modules.batchnorm import _BatchNorm

from stratrun.errors import ConfigError, nearest
from stratrun.hooks.base import PRIORITIES, Hook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from torch import nn

    from stratrun.context import RunContext


@HOOKS.register_module()
class FreezeHook(Hook):
    """Keeps parts of the model as they are for a while, and thaws them at once or one by one.

    A frozen parameter gets no gradient, so that no optimizer moves it, be it by decay or by momentum. What is
    frozen is a function of the counts of finished work alone. With several parts and `interval` it is the
    gradual unfreezing of Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification",
    2018: the last part is thawed first.

    Args:
        params: A regular expression that is searched for in the names of parameters, or several: one for
            each part, in the order of the model.
        until: After how many epochs they are thawed, or the last of them is; None for never.
        interval: Epochs from the thawing of a part to that of the part before it; None thaws all at once.
        begin: After how many epochs they are frozen.
        by_epoch: Whether these count epochs; else updates.
        norm_eval: Whether batch normalization in frozen parts is in evaluation mode, so that its running
            statistics stay as they are and are what it goes by.
    """

    # Ahead of whatever looks at what is trained.
    priority: ClassVar[int] = PRIORITIES["VERY_HIGH"]

    def __init__(
        self,
        params: str | Sequence[str],
        *,
        until: int | None = None,
        interval: int | None = None,
        begin: int = 0,
        by_epoch: bool = True,
        norm_eval: bool = False,
    ) -> None:
        unit = "epochs" if by_epoch else "updates"
        for name, count, least in (("until", until, 1), ("interval", interval, 1), ("begin", begin, 0)):
            if count is not None and (type(count) is not int or count < least):
                raise ConfigError(
                    f"FreezeHook: {name}={count!r} must be a whole number of {unit}, at least {least}"
                )
        if until is not None and until <= begin:
            raise ConfigError(f"FreezeHook: until={until} must be above begin={begin}, or nothing is frozen")
        if interval is not None and until is None:
            raise ConfigError(
                f"FreezeHook: interval={interval} needs until=, which says when the last part is thawed"
            )
        self._patterns = _patterns(params)
        self.until = until
        self.interval = interval
        self.begin = begin
        self.by_epoch = by_epoch
        self.norm_eval = norm_eval
        self._model: nn.Module | None = None
        self._parts: list[list[nn.Parameter]] = []
        self._norms: list[list[nn.Module]] = []
        self._frozen: tuple[bool, ...] = ()
        self._count = -1

    def after_load_checkpoint(self, runner: RunContext) -> None:
        # Before what this process alone had saved is put back, which tells of the model as it was then.
        self._bind(runner.model)
        self._apply(runner)
        runner.engine.start_epoch()

    def before_train(self, runner: RunContext) -> None:
        self._bind(runner.model)
        self._apply(runner)

    def before_train_epoch(self, runner: RunContext) -> None:
        # The loop has the run take note of it.
        self._apply(runner)

    def after_train_iter(self, runner: RunContext) -> None:
        # After an update no gradient waits for another.
        if not self.by_epoch and runner.step != self._count and self._apply(runner):
            runner.engine.start_epoch()

    def _is_frozen(self, part: int, count: int) -> bool:
        if count < self.begin:
            return False
        behind = len(self._patterns) - 1 - part
        return self.until is None or count < self.until + behind * (self.interval or 0)

    def _bind(self, model: nn.Module) -> None:
        """Find the parts, once in a model: later on its parameters do not tell what the user had frozen."""
        if self._model is model:
            return
        named = dict(model.named_parameters())
        norms = {path: one for path, one in model.named_modules() if isinstance(one, _BatchNorm)}
        self._parts, self._norms = [], []
        for pattern in self._patterns:
            names = [name for name in named if pattern.search(name)]
            if not names:
                raise ConfigError(
                    f"FreezeHook: params={pattern.pattern!r} is in no parameter's name; "
                    f"{nearest(pattern.pattern, named)}"
                )
            self._parts.append([named[name] for name in names if named[name].requires_grad])
            # One without parameters has the place of those that it would have.
            self._norms.append([one for path, one in norms.items() if pattern.search(f"{path}.weight")])
        self._model, self._frozen, self._count = model, (False,) * len(self._patterns), -1

    def _apply(self, runner: RunContext) -> bool:
        """Freeze and thaw what is to be so now. Returns whether that changed anything."""
        self._count = runner.epoch if self.by_epoch else runner.step
        wanted = tuple(self._is_frozen(part, self._count) for part in range(len(self._patterns)))
        changed = wanted != self._frozen
        if changed:
            self._frozen = wanted
            # Of a parameter in several parts that which is thawed last decides.
            for frozen in (False, True):
                for part, one in enumerate(wanted):
                    if one is frozen:
                        self._set(part, frozen)
            assert self._model is not None
            if not any(p.requires_grad for p in self._model.parameters()):
                raise ConfigError(
                    f"FreezeHook: nothing is left to train after {self._count} "
                    f"{'epochs' if self.by_epoch else 'updates'}; freeze fewer parts, or not all at a time"
                )
        return changed

    def _set(self, part: int, frozen: bool) -> None:
        for parameter in self._parts[part]:
            parameter.requires_grad_(not frozen)
            if frozen:
                parameter.grad = None
        if self.norm_eval:
            for norm in self._norms[part]:
                norm.train(not frozen)


def _patterns(params: Any) -> list[re.Pattern[str]]:
    given = [params] if isinstance(params, str) else params
    if not isinstance(given, list | tuple) or not given or not all(isinstance(one, str) for one in given):
        raise ConfigError(f"FreezeHook: params={params!r} must be a regular expression, or a list of some")
    try:
        return [re.compile(one) for one in given]
    except re.error as error:
        raise ConfigError(f"FreezeHook: params={params!r} is no regular expression: {error}") from error
