"""Schedules of the learning rate out of what the user gave."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from stratrun.errors import ConfigError, nearest
from stratrun.optim.optimizer import DEFAULT
from stratrun.registry import PARAM_SCHEDULERS
from stratrun.registry.spec import edited

_OURS = ("by_epoch", "optimizer", "monitor")


class Schedule:
    """One torch scheduler, and when it moves.

    Args:
        by_epoch: Move after each epoch, rather than after each optimizer update.
        monitor: Metric that a plateau scheduler follows; it then moves after each validation.
    """

    def __init__(self, scheduler: LRScheduler, *, by_epoch: bool = True, monitor: str | None = None) -> None:
        self.scheduler = scheduler
        self.by_epoch = by_epoch
        self.monitor = monitor

    def step(self) -> None:
        # Or torch warns that no update came before, where all of this process were skipped for overflow, or
        # it resumes before its first one.
        self.scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]
        self.scheduler.step()

    def follow(self, metrics: Mapping[str, float]) -> None:
        """Move by the latest validation.

        Raises:
            ConfigError: validation gave no metric of that name.
        """
        assert self.monitor is not None
        if self.monitor not in metrics:
            raise ConfigError(
                f"param_scheduler: monitor={self.monitor!r} is no metric of the validation; "
                f"{nearest(self.monitor, metrics)}"
            )
        plateau = cast(ReduceLROnPlateau, self.scheduler)
        plateau.step(metrics[self.monitor])

    def state_dict(self) -> dict[str, Any]:
        return dict(self.scheduler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


def check(spec: Any, optimizers: Iterable[str] = (DEFAULT,)) -> None:
    """Refuse what could not be built, building nothing."""
    names = list(optimizers)
    for where, one in each(spec):
        if isinstance(one, Mapping):
            target = one.get("optimizer", names[0])
            if target not in names:
                raise ConfigError(
                    f"{where}: no optimizer is called {target!r}; {nearest(str(target), names)}"
                )
            if not isinstance(one.get("by_epoch", True), bool):
                raise ConfigError(
                    f"{where}: by_epoch={one['by_epoch']!r} must be True (move after each epoch) or False "
                    "(after each update)"
                )
            entry, options = PARAM_SCHEDULERS.check(
                edited(one, drop=_OURS), where=where, given=("optimizer",)
            )
            _refuse_lone_plateau(entry, one, where)
            if "schedulers" in options:
                check(options["schedulers"], names)
        elif isinstance(one, str | type):
            PARAM_SCHEDULERS.check(one, where=where, given=("optimizer",))
        elif not isinstance(one, LRScheduler | Schedule) and not callable(one):
            raise ConfigError(
                f"{where}={one!r} is no scheduler; give a dict such as "
                "dict(type='CosineAnnealingLR', T_max=10, by_epoch=True)"
            )


def build(spec: Any, optimizers: Mapping[str, Optimizer]) -> list[Schedule]:
    """The schedules of a spec: one, or a list of them that act together.

    Raises:
        ConfigError: a ready one belongs to an optimizer that the run does not use.
    """
    schedules = [_build_one(one, optimizers, where) for where, one in each(spec)]
    own = {id(optimizer) for optimizer in optimizers.values()}
    for (where, _), schedule in zip(each(spec), schedules, strict=True):
        if id(schedule.scheduler.optimizer) not in own:
            raise ConfigError(
                f"{where}: the given {type(schedule.scheduler).__name__} moves the learning rate of another "
                "optimizer than the run's; give that optimizer as optimizer= too, or a dict with 'type'"
            )
    return schedules


def _build_one(spec: Any, optimizers: Mapping[str, Optimizer], where: str) -> Schedule:
    if isinstance(spec, Schedule):
        return spec
    if isinstance(spec, LRScheduler):
        return Schedule(spec)
    first = next(iter(optimizers.values()))
    if not isinstance(spec, Mapping):
        made = PARAM_SCHEDULERS.build(spec, where=where, optimizer=first)
        return Schedule(made if isinstance(made, LRScheduler) else made(first))
    optimizer = optimizers[spec.get("optimizer", next(iter(optimizers)))]
    inner = edited(spec, drop=_OURS)
    if "schedulers" in inner:
        # The schedulers that SequentialLR and ChainedScheduler are made of.
        inner["schedulers"] = [
            _build_one(one, {"": optimizer}, f"{where}.schedulers").scheduler for one in inner["schedulers"]
        ]
    made = PARAM_SCHEDULERS.build(inner, where=where, offer={"optimizer": optimizer})
    return Schedule(made, by_epoch=spec.get("by_epoch", True), monitor=spec.get("monitor"))


def each(spec: Any) -> list[tuple[str, Any]]:
    """The specs of single schedules, and what the user calls each."""
    if spec is None:
        return []
    if isinstance(spec, list | tuple):
        return [(f"param_scheduler.{i}", one) for i, one in enumerate(spec)]
    return [("param_scheduler", spec)]


def _refuse_lone_plateau(entry: Any, spec: Mapping[str, Any], where: str) -> None:
    plateau = inspect.isclass(entry) and issubclass(entry, ReduceLROnPlateau)
    if plateau and not spec.get("monitor"):
        raise ConfigError(f"{where}: ReduceLROnPlateau follows a metric; add monitor='name_of_the_metric'")
    if spec.get("monitor") and not plateau:
        raise ConfigError(f"{where}: {spec['type']!r} follows no metric; remove monitor={spec['monitor']!r}")
