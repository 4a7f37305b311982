"""Lengths of schedules: those that are left to the run, and epochs turned into updates."""

from collections.abc import Callable, Mapping
from inspect import Parameter
from math import isfinite
from typing import Any

from stratrun.errors import ConfigError
from stratrun.optim.extent import Extent
from stratrun.registry import PARAM_SCHEDULERS
from stratrun.registry.arguments import at, parameters_of
from stratrun.registry.spec import edited

AUTO = "auto"
LENGTHS = ("T_max", "total_iters", "total_steps")
"""Arguments that may be left to the run."""
_SPANS = (*LENGTHS, "T_0", "step_size", "step_size_up", "step_size_down", "warmup_iters", "decay_iters")
_PLACES = ("begin", "end")
_FROM_NONE = ("total_iters", "warmup_iters")
"""Spans that may be none at all."""
# What counts moves by itself: whether it would still be right for shorter ones, nobody can tell.
_COUNTS = ("lr_lambda", "scale_fn")


def check_lengths(entry: Callable[..., Any], spec: Mapping[str, Any], where: str, *, parts: bool) -> None:
    """Refuse spans and milestones that schedules of torch, and ours, fail of or never come to.

    Args:
        parts: Whether they are of epochs that become updates, so that parts of one make sense.

    Raises:
        ConfigError: says what would do.
    """
    if str(getattr(entry, "__module__", "")).partition(".")[0] not in ("torch", "stratrun"):
        return
    kind = "number" if parts else "whole number"
    for key in _SPANS:
        value, least = spec.get(key), key in _FROM_NONE
        if value not in (None, AUTO) and not (
            _counts(value, parts) and (value > 0 or (least and value == 0))
        ):
            raise ConfigError(
                f"{where}: {key}={value!r} must be a {kind}{', 0 or more' if least else ' above 0'}"
                f"{at(_places(spec), key)}"
            )
    found = spec.get("milestones", ())
    if not isinstance(found, list | tuple) or not all(_counts(one, parts) and one >= 0 for one in found):
        raise ConfigError(
            f"{where}: milestones={found!r} must be a list of {kind}s, such as [30, 60]"
            f"{at(_places(spec), 'milestones')}"
        )


def _counts(value: Any, parts: bool) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return number and (parts or float(value).is_integer())


def settled(entry: Callable[..., Any], spec: Mapping[str, Any], extent: Extent, where: str) -> dict[str, Any]:
    """A spec in which every length is a number, in the unit that the schedule moves in.

    Raises:
        ConfigError: that takes how long the training is, which is not known.
    """
    parameters = parameters_of(entry) or {}
    known = dict(spec)
    if known.get("convert_to_iter_based"):
        known = _in_updates(entry, known, parameters, extent, where)
    by_epoch = known.get("by_epoch", True)
    if "steps_per_epoch" in parameters and "epochs" in known and known.get("steps_per_epoch", AUTO) == AUTO:
        known["steps_per_epoch"] = 1 if by_epoch else _each(extent, "epochs", spec, where)
    left = [key for key in LENGTHS if key in parameters and _is_left(key, known, parameters[key])]
    for key in left:
        length, whole = _length(
            key, known, extent, where, needed=key in spec or _is_required(parameters[key])
        )
        if length is not None:
            known[key] = length
            if whole:
                # At its last value it stays, should the training be gone on with for longer.
                known["end"] = known.get("begin", 0) + length + (key != "total_steps")
    put = {key: value for key, value in known.items() if key not in spec or spec[key] is not value}
    return edited(spec, drop=["convert_to_iter_based"], put=put)


def _is_left(key: str, known: Mapping[str, Any], parameter: Parameter) -> bool:
    if key in known:
        return bool(known[key] == AUTO)
    if key == "total_steps" and "epochs" in known:
        return False
    # Torch has a default of five for some, which says nothing of a window that is given.
    return _is_required(parameter) or parameter.default is None or known.get("end") is not None


def _is_required(parameter: Parameter) -> bool:
    return parameter.default is parameter.empty


def _length(
    key: str, known: Mapping[str, Any], extent: Extent, where: str, *, needed: bool
) -> tuple[int | None, bool]:
    """A length that is left to the run, and whether it is that of all the training."""
    begin, end = known.get("begin", 0), known.get("end")
    if end is not None:
        # So that the last value within the window is the one that it leads to, as a warm-up has to.
        return max(end - begin - (key == "total_iters"), 1), False
    whole = extent.epochs if known.get("by_epoch", True) else extent.updates
    if whole is None and not needed:
        return None, False
    length = _known(whole, key, known, where) - begin
    if length < 1:
        raise ConfigError(
            f"{where}: begin={begin} is not before the end of the training, which has {whole} "
            f"{'epochs' if known.get('by_epoch', True) else 'updates'}{at(_places(known), 'begin')}"
        )
    return length, True


def _in_updates(
    entry: Callable[..., Any],
    spec: Mapping[str, Any],
    parameters: Mapping[str, Parameter],
    extent: Extent,
    where: str,
) -> dict[str, Any]:
    known = dict(spec)
    for key in _COUNTS:
        if known.get(key) is not None:
            raise ConfigError(
                f"{where}: convert_to_iter_based=True does not know how {key}= counts; write it for updates, "
                "with by_epoch=False"
            )
    each = _each(extent, "convert_to_iter_based", spec, where)
    default = parameters["total_iters"].default if "total_iters" in parameters else None
    if isinstance(default, int) and "end" not in known:
        known.setdefault("total_iters", default)
    for key in (*_SPANS, *_PLACES):
        if isinstance(known.get(key), int | float):
            known[key] = round(known[key] * each) if key in _PLACES else max(round(known[key] * each), 1)
    if known.get("milestones") is not None:
        known["milestones"] = [round(one * each) for one in known["milestones"]]
    if getattr(entry, "__name__", "") == "ExponentialLR" and "gamma" in known:
        # The factor of each move: together, those of an epoch are to make the one that was given.
        known["gamma"] = known["gamma"] ** (1 / each)
    if "schedulers" in known:
        known["schedulers"] = [_inner(one, extent, f"{where}.schedulers") for one in known["schedulers"]]
    known["by_epoch"] = False
    return known


def _inner(spec: Any, extent: Extent, where: str) -> Any:
    """A part of a schedule whose epochs become updates."""
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{where}: convert_to_iter_based=True takes dicts, and {spec!r} is none")
    entry, _ = PARAM_SCHEDULERS.check(spec, where=where, given=("optimizer",))
    converted = settled(entry, edited(spec, put={"convert_to_iter_based": True}), extent, where)
    return edited(converted, drop=["by_epoch"])


def _each(extent: Extent, key: str, spec: Mapping[str, Any], where: str) -> int:
    """Updates of an epoch."""
    if extent.ends is not None:
        raise ConfigError(
            f"{where}: {key}={spec[key]!r} goes by how many updates an epoch has, and with accumulate= that "
            f"changes they are not always as many; give numbers of updates, with by_epoch=False"
            f"{at(_places(spec), key)}"
        )
    return _known(extent.updates_per_epoch, key, spec, where)


def _known(value: int | None, key: str, spec: Mapping[str, Any], where: str) -> int:
    if value is not None:
        return value
    shown = f"{key}={spec[key]!r}" if key in spec else f"{key}, which is not given,"
    raise ConfigError(
        f"{where}: {shown} depends on how long the training is, which its loop does not know beforehand "
        "(the data has no length, or the loop is of another kind); give numbers, of updates with "
        f"by_epoch=False"
        f"{at(_places(spec), key)}"
    )


def _places(spec: Mapping[str, Any]) -> Mapping[str, str]:
    found: Mapping[str, str] = getattr(spec, "places", {})
    return found
