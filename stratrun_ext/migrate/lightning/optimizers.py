"""What `configure_optimizers` returns, in all its forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from stratrun.errors import ConfigError, IncompatibleError, nearest

_KEYS = ("scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau")
_FORMS = "return an optimizer, dict(optimizer=..., lr_scheduler=...), or the lists [optimizer], [schedulers]"


@dataclass(slots=True)
class Scheduled:
    """A scheduler, and when it moves."""

    scheduler: LRScheduler
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True

    def due(self, interval: str, count: int) -> bool:
        """Whether it moves when so many epochs, or batches of the epoch, are done."""
        return self.interval == interval and count % self.frequency == 0

    def move(self, metrics: Mapping[str, float]) -> None:
        """Take one step, by its metric if it follows one.

        Raises:
            ConfigError: nothing has logged the metric that it follows.
        """
        # Torch warns of schedulers that move before any update, which is not so where the first was skipped.
        self.scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]
        if self.monitor is None:
            self.scheduler.step()
        elif self.monitor in metrics:
            self.scheduler.step(metrics[self.monitor])  # type: ignore[arg-type]
        elif self.strict:
            raise ConfigError(
                f"configure_optimizers: monitor={self.monitor!r} was not logged; "
                f"{nearest(self.monitor, metrics) if metrics else 'self.log() it in validation_step'}"
            )


def parse(returned: Any) -> tuple[Optimizer, list[Scheduled]]:
    """The optimizer and the schedulers of what `configure_optimizers` returned.

    Raises:
        ConfigError: it is none of the forms.
        IncompatibleError: there are several optimizers, which takes optimization by hand.
    """
    optimizers, schedulers = _taken_apart(returned)
    if not optimizers:
        raise ConfigError(f"configure_optimizers returned no optimizer; {_FORMS}")
    if len(optimizers) > 1:
        raise IncompatibleError(
            f"configure_optimizers returned {len(optimizers)} optimizers, which takes optimization by hand; "
            "give them as optimizer=dict(a=..., b=...) to stratrun.Runner, with a loop of your own "
            "(docs/custom_loop.md)"
        )
    if not isinstance(optimizers[0], Optimizer):
        raise ConfigError(
            f"configure_optimizers returned {type(optimizers[0]).__name__}, which is no optimizer of torch; "
            f"{_FORMS}"
        )
    return optimizers[0], [_scheduled(one) for one in schedulers]


def refuse_foreign(optimizer: Optimizer, module: nn.Module) -> None:
    """
    Raises:
        ConfigError: it moves what is no parameter of the module, whose state nobody would find again.
    """
    own = set(map(id, module.parameters()))
    foreign = sum(id(one) not in own for group in optimizer.param_groups for one in group["params"])
    if foreign:
        raise ConfigError(
            f"configure_optimizers: {foreign} parameters of {type(optimizer).__name__} are none of "
            f"{type(module).__name__}'s; give it self.parameters(), and make layers attributes of the module"
        )


def _taken_apart(returned: Any) -> tuple[list[Any], list[Any]]:
    if returned is None:
        return [], []
    if isinstance(returned, Mapping):
        unknown = [key for key in returned if key not in ("optimizer", "lr_scheduler", "monitor")]
        if unknown or "optimizer" not in returned:
            wrong = unknown[0] if unknown else "nothing"
            raise ConfigError(
                f"configure_optimizers returned a dict with {wrong!r}; its keys are 'optimizer' and "
                "'lr_scheduler'"
            )
        scheduler = returned.get("lr_scheduler")
        if "monitor" in returned and scheduler is not None and not isinstance(scheduler, Mapping):
            scheduler = {"scheduler": scheduler, "monitor": returned["monitor"]}
        return [returned["optimizer"]], [] if scheduler is None else [scheduler]
    if isinstance(returned, Sequence) and not isinstance(returned, str):
        pairs = len(returned) == 2 and all(isinstance(one, list | tuple) for one in returned)
        if pairs:
            return list(returned[0]), list(returned[1])
        if any(isinstance(one, Mapping) for one in returned):
            parts = [_taken_apart(one) for one in returned]
            return [one for part in parts for one in part[0]], [one for part in parts for one in part[1]]
        return list(returned), []
    return [returned], []


def _scheduled(given: Any) -> Scheduled:
    options = dict(given) if isinstance(given, Mapping) else {"scheduler": given}
    for key in options:
        if key not in _KEYS:
            raise ConfigError(f"configure_optimizers: lr_scheduler has {key!r}; {nearest(key, _KEYS)}")
    scheduler = options.get("scheduler")
    if not isinstance(scheduler, LRScheduler):
        raise ConfigError(
            f"configure_optimizers: lr_scheduler is {type(scheduler).__name__}, which is none of "
            "torch.optim.lr_scheduler; return one, or dict(scheduler=..., interval='step')"
        )
    interval, frequency = options.get("interval", "epoch"), options.get("frequency", 1)
    if interval not in ("step", "epoch"):
        raise ConfigError(
            f"configure_optimizers: interval={interval!r} must be 'step' (after updates) or 'epoch'"
        )
    if type(frequency) is not int or frequency < 1:
        raise ConfigError(
            f"configure_optimizers: frequency={frequency!r} must be a whole number of at least 1"
        )
    monitor = options.get("monitor")
    plateau = isinstance(scheduler, ReduceLROnPlateau) or bool(options.get("reduce_on_plateau"))
    if plateau and not monitor:
        raise ConfigError(
            "configure_optimizers: ReduceLROnPlateau needs a metric to follow; return "
            "dict(scheduler=..., monitor='val_loss')"
        )
    return Scheduled(
        scheduler, interval, frequency, monitor if plateau else None, options.get("strict", True)
    )
