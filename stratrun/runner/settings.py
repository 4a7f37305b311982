"""What training was set up with, and how that differs from the run whose checkpoint goes on."""

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stratrun.hooks import Hook
from stratrun.optim import Schedule
from stratrun.optim.optimizer import DEFAULT
from stratrun.strategies.logical import WAYS

Settings = Mapping[str, Any]
_LAYERS = ("precision", "strategy", "accumulate")
_HINT = "from the checkpoint (load_from=dict(path=..., parts=['model', ...]) starts with what is given)"
_OTHER = object()


def of_optimizers(optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
    """Options by group. Taken before schedules are built, as those move some of them."""
    return {
        name: {
            "type": type(one).__name__,
            "groups": [_options(group, one.defaults) for group in one.param_groups],
        }
        for name, one in optimizers.items()
    }


def _options(group: Mapping[str, Any], defaults: Iterable[str]) -> dict[str, Any]:
    # A schedule that came with the optimizer, ready-made, has moved the learning rate already.
    moved = {"lr": group["initial_lr"]} if "initial_lr" in group else {}
    return _plain({**{key: group[key] for key in defaults if key in group and key not in WAYS}, **moved})


def of_schedule(schedule: Schedule) -> dict[str, Any]:
    """The arguments of its class that it keeps under their names, and its window."""
    found = _of_scheduler(schedule.scheduler)
    window = {"begin": schedule.begin, "end": schedule.end, "param": schedule.param}
    return {**found, "options": {**found["options"], **window}}


def _of_scheduler(scheduler: LRScheduler) -> dict[str, Any]:
    names = inspect.signature(type(scheduler)).parameters.keys() - {"optimizer", "last_epoch", "schedulers"}
    kept = {name: getattr(scheduler, name, getattr(scheduler, f"_{name}", _OTHER)) for name in sorted(names)}
    inner = [_of_scheduler(one) for one in getattr(scheduler, "_schedulers", ())]
    return {"type": type(scheduler).__name__, "options": _plain(kept), "inner": inner}


def differences(given: Settings, saved: Settings) -> list[str]:
    """A line on each part that was set up in another way: what is given, and what goes on."""
    lines = [
        f"{key}: was {saved[key]}, is {given[key]} from here on"
        for key in _LAYERS
        if key in saved and key in given and saved[key] != given[key]
    ]
    lines += _of_scaling(given.get("scaled_for", {}), saved.get("scaled_for", {}))
    then = saved.get("optimizers", {})
    for name, one in given.get("optimizers", {}).items():
        if name in then:
            lines += _of_part(_called(name), one, then[name], _by_group(one["groups"], then[name]["groups"]))
    schedules = list(zip(given.get("schedules", ()), saved.get("schedules", ()), strict=False))
    for number, (mine, theirs) in enumerate(schedules):
        where = "param_scheduler" if len(schedules) == 1 else f"param_scheduler.{number}"
        lines += _of_schedules(where, mine, theirs)
    return lines


def gone_on_with(given: Settings, saved: Settings) -> dict[str, Any]:
    """The settings of a run that goes on: options as its checkpoint has them, and layers as given."""
    then = saved.get("optimizers", {})
    optimizers = {name: {**one, **then.get(name, {})} for name, one in given.get("optimizers", {}).items()}
    before = saved.get("schedules", ())
    schedules = [
        before[number] if number < len(before) and before[number]["type"] == one["type"] else one
        for number, one in enumerate(given.get("schedules", ()))
    ]
    scaled = {**given.get("scaled_for", {}), **saved.get("scaled_for", {})}
    return {**given, "optimizers": optimizers, "schedules": schedules, "scaled_for": scaled}


def hook_differences(hooks: Mapping[str, Hook], saved: Mapping[str, Any]) -> list[str]:
    """A line on hooks whose state is dropped, and one on those that have none to go on with."""
    dropped = [name for name, state in saved.items() if state and name not in hooks]
    new = [
        name
        for name, hook in hooks.items()
        if name not in saved and type(hook).state_dict is not Hook.state_dict
    ]
    lines = []
    if dropped:
        lines.append(
            f"the checkpoint has state of {', '.join(dropped)}, which this run has not; it is dropped"
        )
    if new:
        lines.append(f"the checkpoint has no state of {', '.join(new)}: new in this run, and begins anew")
    return lines


def _of_scaling(given: Mapping[str, int], saved: Mapping[str, int]) -> list[str]:
    return [
        f"{_called(name)}: scale_lr: learning rates go on as scaled for updates of {saved[name]} samples, "
        f"which have {samples} from here on"
        for name, samples in given.items()
        if saved.get(name, samples) != samples
    ]


def _called(optimizer: str) -> str:
    return optimizer if optimizer == DEFAULT else f"optimizer.{optimizer}"


def _of_schedules(where: str, mine: Settings, theirs: Settings) -> Iterator[str]:
    found = _by_group([mine["options"]], [theirs["options"]]) if mine["type"] == theirs["type"] else []
    yield from _of_part(where, mine, theirs, found)
    for number, pair in enumerate(zip(mine["inner"], theirs["inner"], strict=False)):
        yield from _of_schedules(f"{where}.schedulers.{number}", *pair)


def _of_part(where: str, mine: Settings, theirs: Settings, found: Sequence[str]) -> Iterator[str]:
    if mine["type"] != theirs["type"]:
        yield f"{where}: was {theirs['type']}, is {mine['type']} from here on"
    if found:
        yield f"{where}: {'; '.join(found)} {_HINT}"


def _by_group(mine: Sequence[Settings], theirs: Sequence[Settings]) -> list[str]:
    """Options that differ, each once; of which group, where not all have it so."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for number, (given, kept) in enumerate(zip(mine, theirs, strict=False)):
        for key in given.keys() & kept.keys():
            if given[key] != kept[key]:
                groups.setdefault((key, str(given[key]), str(kept[key])), []).append(number)
    return [
        f"{key}{_of(numbers, len(mine))} {given} is given, {kept} goes on"
        for (key, given, kept), numbers in sorted(groups.items())
    ]


def _of(numbers: Sequence[int], groups: int) -> str:
    return "" if len(numbers) == groups else f" of group {', '.join(map(str, numbers))}"


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that can be saved and compared: numbers, words, and lists of them, a tuple being a list."""
    found = {key: _value(value) for key, value in options.items()}
    return {key: value for key, value in found.items() if value is not _OTHER}


def _value(value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, Counter):
        return sorted(value.elements())
    if isinstance(value, list | tuple):
        values = [_value(one) for one in value]
        return _OTHER if any(one is _OTHER for one in values) else values
    return value if value is None or isinstance(value, bool | int | float | str) else _OTHER
