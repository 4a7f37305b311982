"""Schedules of values of parameter groups out of what the user gave."""

import inspect
import re
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from stratrun.errors import ConfigError, StratrunError, nearest
from stratrun.optim.driven import RATE, numbers_of, real, target
from stratrun.optim.extent import Extent
from stratrun.optim.lengths import AUTO, LENGTHS, check_lengths, settled
from stratrun.optim.optimizer import DEFAULT, says
from stratrun.optim.overlap import Acting, refuse_overlap
from stratrun.optim.schedule import Schedule
from stratrun.problems import part
from stratrun.registry import PARAM_SCHEDULERS
from stratrun.registry.spec import edited

_OURS = ("by_epoch", "optimizer", "monitor", "param", "groups", "begin", "end", "convert_to_iter_based")
_SOME = Extent(epochs=1000, updates=1000 * 1000, updates_per_epoch=1000)


def check(spec: Any, optimizers: Iterable[str] = (DEFAULT,)) -> None:
    """Refuse what could not be built, building nothing."""
    names = list(optimizers)
    for where, one in each(spec):
        with part(where):
            _check_one(one, names, where)


def _check_one(one: Any, names: list[str], where: str) -> None:
    if isinstance(one, Mapping):
        target = one.get("optimizer", names[0])
        if target not in names:
            with part():
                raise ConfigError(
                    f"{where}: no optimizer is called {target!r}; {nearest(str(target), names)}"
                )
        with part():
            _check_flags(one, where)
        with part():
            _check_window(one, where)
        entry, options = _entry(one, where)
        with part():
            _refuse_lone_plateau(entry, one, where)
        parts = one.get("convert_to_iter_based", False)
        with part():
            check_lengths(entry, one, where, parts=parts)
        _check_inner(options, where, parts=parts)
    elif isinstance(one, str | type):
        PARAM_SCHEDULERS.check(one, where=where, given=("optimizer",), offer=LENGTHS)
    elif not isinstance(one, LRScheduler | Schedule) and not callable(one):
        raise ConfigError(
            f"{where}={one!r} is no scheduler; give a dict such as "
            "dict(type='CosineAnnealingLR', T_max=10, by_epoch=True)"
        )


def try_values(spec: Mapping[str, Any], optimizer: Optimizer, where: str) -> None:
    """Have a class of torch look at the values of its arguments, over an optimizer of nothing.

    Raises:
        ConfigError: it does not take one of them.
    """
    entry, options = _entry(spec, where)
    if not str(getattr(entry, "__module__", "")).startswith("torch.optim") or _is_of_groups(options):
        return
    alone = edited(spec, drop=[key for key in ("optimizer", "groups") if key in spec])
    try:
        (made,) = build(alone, {DEFAULT: optimizer}, _SOME)
        if made.monitor is None:
            # Some look at a value only when they move. Torch warns of a move before any update.
            optimizer._opt_called = True  # type: ignore[attr-defined]
            made.scheduler.step()
    except StratrunError:
        pass  # of lengths, most likely, which are made up here
    except Exception as error:
        key = next((key for key in options if key in re.findall(r"\w+", str(error))), "type")
        raise says(entry, error, where, spec, key) from error


def _is_of_groups(options: Mapping[str, Any]) -> bool:
    """Whether something is given for each of several groups, or by a function of the user's."""
    for key, value in options.items():
        if key in ("type", "milestones"):
            continue
        if key == "schedulers":
            if any(not isinstance(one, Mapping) or _is_of_groups(one) for one in value):
                return True
        elif callable(value) or isinstance(value, list | tuple):
            return True
    return False


def build(spec: Any, optimizers: Mapping[str, Optimizer], extent: Extent | None = None) -> list[Schedule]:
    """The schedules of a spec: one, or a list of them that act together.

    Args:
        extent: How long the training is, for lengths that are left to it.

    Raises:
        ConfigError: a ready one belongs to an optimizer that the run does not use, a length depends on that
            of the training and nobody knows it, or two of them undo each other's work.
    """
    extent = extent or Extent()
    acting: list[Acting] = []
    schedules = [_build_one(one, optimizers, where, extent, acting) for where, one in each(spec)]
    refuse_overlap(acting, extent)
    own = {id(optimizer) for optimizer in optimizers.values()}
    for (where, _), schedule in zip(each(spec), schedules, strict=True):
        if id(real(schedule.scheduler.optimizer)) not in own:
            raise ConfigError(
                f"{where}: the given {type(schedule.scheduler).__name__} moves the learning rate of another "
                "optimizer than the run's; give that optimizer as optimizer= too, or a dict with 'type'"
            )
    return schedules


def _build_one(
    spec: Any, optimizers: Mapping[str, Optimizer], where: str, extent: Extent, acting: list[Acting]
) -> Schedule:
    if isinstance(spec, Schedule):
        return spec
    if isinstance(spec, LRScheduler):
        return Schedule(spec)
    first = next(iter(optimizers.values()))
    if isinstance(spec, str | type):
        spec = {"type": spec}
    if not isinstance(spec, Mapping):
        made = PARAM_SCHEDULERS.build(spec, where=where, optimizer=first)
        return Schedule(made if isinstance(made, LRScheduler) else made(first))
    entry, _ = _entry(spec, where)
    known = settled(entry, spec, extent, where)
    optimizer = optimizers[spec.get("optimizer", next(iter(optimizers)))]
    param = spec.get("param", RATE)
    driven = target(optimizer, param, spec.get("groups"), where)
    schedule = _windowed(known, driven, where, param)
    numbers = numbers_of(optimizer, spec.get("groups"), where)
    acting.append(Acting(where, schedule, {(id(optimizer), param, number) for number in numbers}))
    return schedule


def _windowed(spec: Mapping[str, Any], optimizer: Optimizer, where: str, param: str) -> Schedule:
    inner = edited(spec, drop=_OURS)

    def make() -> LRScheduler:
        return _made(inner, optimizer, where, param)

    begin = spec.get("begin", 0)
    before = [(group, dict(group)) for group in real(optimizer).param_groups]
    made = make()
    if begin:
        # What it did when it was made is for the beginning of its window.
        for group, values in before:
            for key in set(group) - set(values):
                del group[key]
            group.update(values)
    return Schedule(
        made,
        by_epoch=spec.get("by_epoch", True),
        monitor=spec.get("monitor"),
        param=param,
        begin=begin,
        end=spec.get("end"),
        make=make if begin and not isinstance(made, ReduceLROnPlateau) else None,
    )


def _made(spec: Any, optimizer: Optimizer, where: str, param: str) -> LRScheduler:
    if isinstance(spec, LRScheduler):
        return spec
    # Torch's cycles move momentum too, which is not theirs where they move something else.
    own: dict[str, Any] = {} if param == RATE else {"cycle_momentum": False}
    if isinstance(spec, Mapping) and "schedulers" in spec:
        # The schedulers that SequentialLR and ChainedScheduler are made of.
        inner = [_made(one, optimizer, f"{where}.schedulers", param) for one in spec["schedulers"]]
        spec = edited(spec, put={"schedulers": inner})
    elif not isinstance(spec, Mapping | str | type):
        own = {"optimizer": optimizer}
    made = PARAM_SCHEDULERS.build(spec, where=where, offer={"optimizer": optimizer, **own})
    return made if isinstance(made, LRScheduler) else made(optimizer)


def each(spec: Any) -> list[tuple[str, Any]]:
    """The specs of single schedules, and what the user calls each."""
    if spec is None:
        return []
    if isinstance(spec, list | tuple):
        return [(f"param_scheduler.{i}", one) for i, one in enumerate(spec)]
    return [("param_scheduler", spec)]


def _entry(spec: Mapping[str, Any], where: str) -> tuple[Any, dict[str, Any]]:
    """The class of a spec and its arguments; lengths that it leaves out are for the run to fill in."""
    drop = [key for key in _OURS if key in spec]
    return PARAM_SCHEDULERS.check(
        edited(spec, drop=drop), where=where, given=("optimizer",), offer=(*LENGTHS, "steps_per_epoch")
    )


def _check_flags(spec: Mapping[str, Any], where: str) -> None:
    if not isinstance(spec.get("by_epoch", True), bool):
        raise ConfigError(
            f"{where}: by_epoch={spec['by_epoch']!r} must be True (move after each epoch) or False "
            "(after each update)"
        )
    for key in ("param", "monitor"):
        if key in spec and not (isinstance(spec[key], str) and spec[key]):
            raise ConfigError(f"{where}: {key}={spec[key]!r} must be a name")
    groups = spec.get("groups")
    several = groups if isinstance(groups, list | tuple) else [0 if groups is None else groups]
    if not several or not all(type(one) in (str, int) for one in several):
        raise ConfigError(
            f"{where}: groups={groups!r} must be the name or the number of a group, or a list of some"
        )
    convert = spec.get("convert_to_iter_based", False)
    if not isinstance(convert, bool):
        raise ConfigError(f"{where}: convert_to_iter_based={convert!r} must be True or False")
    if convert and (not spec.get("by_epoch", True) or spec.get("monitor")):
        given = f"monitor={spec['monitor']!r}" if spec.get("monitor") else "by_epoch=False"
        raise ConfigError(
            f"{where}: convert_to_iter_based=True turns epochs into updates, but with {given} nothing is "
            "counted in epochs; leave one of them out"
        )
    for key in LENGTHS:
        if isinstance(spec.get(key), str) and spec[key] != AUTO:
            raise ConfigError(
                f"{where}: {key}={spec[key]!r} must be a number, or 'auto' for all the training"
            )


def _check_window(spec: Mapping[str, Any], where: str) -> None:
    begin, end = spec.get("begin", 0), spec.get("end")
    fits = int | float if spec.get("convert_to_iter_based") else int
    for key, value in (("begin", begin), ("end", end)):
        if (value is not None or key == "begin") and (not isinstance(value, fits) or isinstance(value, bool)):
            unit = "epochs" if spec.get("by_epoch", True) else "updates"
            raise ConfigError(f"{where}: {key}={value!r} must be a whole number, of {unit}")
    if not begin >= 0 or begin == inf or (end is not None and not begin < end < inf):
        raise ConfigError(f"{where}: begin={begin!r} must be at least 0, and end={end!r} be after it")


def _check_inner(options: Mapping[str, Any], where: str, *, parts: bool) -> None:
    within = options.get("schedulers", ())
    if not isinstance(within, list | tuple):
        raise ConfigError(f"{where}: schedulers={within!r} must be a list of schedules")
    for number, one in enumerate(within):
        inside = f"{where}.schedulers.{number}"
        if not isinstance(one, Mapping):
            check([one])
            continue
        ours = [key for key in _OURS if key in one]
        if ours:
            raise ConfigError(
                f"{inside}: {ours[0]}={one[ours[0]]!r} is for the schedule as a whole; write it beside "
                "'schedulers'"
            )
        left = [key for key in LENGTHS if one.get(key) == AUTO]
        if left:
            raise ConfigError(f"{inside}: {left[0]}='auto' is for a schedule of its own; give a number")
        entry, inner = PARAM_SCHEDULERS.check(one, where=inside, given=("optimizer",))
        check_lengths(entry, one, inside, parts=parts)
        _check_inner(inner, inside, parts=parts)


def _refuse_lone_plateau(entry: Any, spec: Mapping[str, Any], where: str) -> None:
    plateau = inspect.isclass(entry) and issubclass(entry, ReduceLROnPlateau)
    if plateau and not spec.get("monitor"):
        raise ConfigError(f"{where}: ReduceLROnPlateau follows a metric; add monitor='name_of_the_metric'")
    if spec.get("monitor") and not plateau:
        raise ConfigError(f"{where}: {spec['type']!r} follows no metric; remove monitor={spec['monitor']!r}")
