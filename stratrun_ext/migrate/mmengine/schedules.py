"""Their schedulers in our words."""

from collections.abc import Callable, Mapping
from typing import Any

from stratrun_ext.migrate.mmengine.taking import Taking
from stratrun_ext.migrate.report import Report

_KINDS = ("ParamScheduler", "Momentum", "LR")
_SAME: dict[str, tuple[str, tuple[str, ...]]] = {
    "Constant": ("ConstantLR", ("factor",)),
    "Linear": ("LinearLR", ("start_factor", "end_factor")),
    "CosineAnnealing": ("CosineAnnealingLR", ("T_max", "eta_min")),
    "Exponential": ("ExponentialLR", ("gamma",)),
    "MultiStep": ("MultiStepLR", ("milestones", "gamma")),
    "Step": ("StepLR", ("step_size", "gamma")),
}
_WINDOW = ("by_epoch", "begin", "end", "convert_to_iter_based")
_UNLIMITED = 10**9


def schedules(given: Any, where: str, report: Report, source: Mapping[str, Any]) -> list[Any]:
    """What is to be `param_scheduler`."""
    listed = given if isinstance(given, list | tuple) else [given]
    made = []
    for number, one in enumerate(listed):
        at = f"{where}.{number}" if isinstance(given, list | tuple) else where
        if not isinstance(one, Mapping) or not isinstance(one.get("type"), str):
            report.add("left for you", at, source, "is no dict with the name of a schedule as 'type'")
            continue
        schedule = _schedule(Taking(one, at, report), str(one["type"]).rpartition(".")[2])
        if schedule is not None:
            made.append(schedule)
    return made


def _schedule(theirs: Taking, name: str) -> dict[str, Any] | None:
    kind = next((kind for kind in _KINDS if name.endswith(kind)), "")
    shape = name.removesuffix(kind)
    rules: dict[str, Callable[[Taking, dict[str, Any]], bool]] = {
        "Poly": _poly,
        "OneCycle": _one_cycle,
        "CosineRestart": _restarts,
        "ReduceOnPlateau": _plateau,
    }
    made: dict[str, Any] = {}
    theirs.take("type")
    if kind and shape in _SAME:
        made["type"], same = _SAME[shape]
        theirs.tell("mapped", "type", "" if name == made["type"] else f"is {made['type']}")
        for key in same:
            theirs.keep(key, made)
        _ratio(theirs)
    elif not kind or shape not in rules or not rules[shape](theirs, made):
        if not kind or shape not in rules:
            theirs.tell("left for you", "type", f"no schedule here is called {name!r}; see docs/schedules.md")
        return None
    _parameter(theirs, kind, made)
    for key in _WINDOW:
        if key == "end" and theirs.source.get(key, 0) >= _UNLIMITED:
            theirs.drop(key, "no end is the default")
        theirs.keep(key, made)
    theirs.drop("last_step", "a resumed run has the state of its schedules")
    theirs.drop("verbose", "learning rates are logged")
    theirs.end("is no argument of the schedule here")
    return made


def _parameter(theirs: Taking, kind: str, made: dict[str, Any]) -> None:
    if kind == "Momentum":
        made["param"] = "momentum"
        theirs.tell("mapped", "type", "moves momentum by param: momentum")
    elif kind == "ParamScheduler":
        theirs.keep("param_name", made, "param")


def _ratio(theirs: Taking) -> None:
    theirs.leave("eta_min_ratio", "give eta_min, the ratio times the learning rate")


def _poly(theirs: Taking, made: dict[str, Any]) -> bool:
    begin, end = theirs.source.get("begin", 0), theirs.source.get("end", _UNLIMITED)
    if end >= _UNLIMITED:
        theirs.tell("left for you", "type", "give end: without it theirs never moves")
        return False
    if theirs.source.get("eta_min"):
        # Ours has eta_min as a floor, where theirs shrinks the curve.
        theirs.tell("left for you", "eta_min", "PolynomialLR ends at 0; nothing here ends higher")
        return False
    made["type"] = "PolynomialLR"
    if theirs.source.get("convert_to_iter_based"):
        theirs.tell("changed", "type", "is PolynomialLR, which ends one update later")
    else:
        theirs.tell("mapped", "type", "is PolynomialLR")
    made["total_iters"] = end - begin - (0 if theirs.source.get("convert_to_iter_based") else 1)
    theirs.drop("eta_min", "0 is what it ends at")
    theirs.keep("power", made)
    return True


def _one_cycle(theirs: Taking, made: dict[str, Any]) -> bool:
    made["type"] = "OneCycleLR"
    theirs.tell("mapped", "type", "with cycle_momentum: false, as theirs moves one value")
    theirs.keep("eta_max", made, "max_lr")
    for key in (
        "total_steps",
        "pct_start",
        "anneal_strategy",
        "div_factor",
        "final_div_factor",
        "three_phase",
    ):
        theirs.keep(key, made)
    made["cycle_momentum"] = False
    return True


def _restarts(theirs: Taking, made: dict[str, Any]) -> bool:
    periods, weights = list(theirs.take("periods", [])), list(theirs.take("restart_weights", [1]))
    regular = len(set(periods)) == 1 or all(
        one * periods[0] == other * periods[1] and periods[1] % periods[0] == 0
        for one, other in zip(periods[1:], periods, strict=False)
    )
    if not periods or not regular or set(weights) != {1}:
        note = "only restarts at full height whose periods are equal, or grow by a whole factor, are here"
        theirs.tell("left for you", "periods", note)
        return False
    factor = periods[1] // periods[0] if len(periods) > 1 else 1
    made.update(type="CosineAnnealingWarmRestarts", T_0=periods[0], T_mult=factor)
    theirs.tell("mapped", "type", "is CosineAnnealingWarmRestarts")
    theirs.tell("changed", "periods", f"T_0: {periods[0]}, T_mult: {factor}; it goes on after the last")
    theirs.tell("nothing to do", "restart_weights", "1 is the height of all restarts")
    theirs.keep("eta_min", made)
    _ratio(theirs)
    return True


def _plateau(theirs: Taking, made: dict[str, Any]) -> bool:
    made["type"] = "ReduceLROnPlateau"
    theirs.tell("mapped", "type", "is ReduceLROnPlateau")
    made["monitor"] = theirs.take("monitor", "loss")
    theirs.tell("mapped", "monitor", "must be a result of validation")
    made["mode"] = {"greater": "max", "less": "min"}.get(theirs.take("rule", "less"), "min")
    theirs.tell("mapped", "rule", f"is mode: {made['mode']}")
    for key in ("factor", "patience", "threshold", "cooldown", "eps"):
        theirs.keep(key, made)
    theirs.keep("threshold_rule", made, "threshold_mode")
    theirs.keep("min_value", made, "min_lr")
    return True
