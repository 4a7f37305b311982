"""Their hooks in our words."""

from collections.abc import Callable, Mapping
from typing import Any

from stratrun_ext.migrate.mmengine.taking import Taking, off
from stratrun_ext.migrate.report import Report

_BY_THEMSELVES = {
    "timer": "is a default hook here",
    "param_scheduler": "schedules move by themselves",
    "sampler_seed": "the order of the data follows from seed and epoch",
    "runtime_info": "counters and learning rates are logged by themselves",
    "visualization": "SampleHook shows samples, if you want that",
}
_SIDE_OPTIONS = ("file_client_args", "backend_args")


def default_hooks(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    if not isinstance(given, Mapping):
        report.add("nothing to do", "default_hooks", source)
        return
    theirs = Taking(given, "default_hooks", report)
    made: dict[str, Any] = {}
    for name, note in _BY_THEMSELVES.items():
        theirs.drop(name, note)
    for name, convert in (("logger", _logger), ("checkpoint", _checkpoint)):
        if name in theirs:
            spec = theirs.take(name)
            if spec is None:
                made[name] = None
                theirs.tell("mapped", name, "is off")
            elif not isinstance(spec, Mapping):
                theirs.tell("left for you", name, "is no dict")
            else:
                made[name] = convert(Taking(spec, f"default_hooks.{name}", report))
    theirs.end("is no default hook here; put it into custom_hooks, if it is yours")
    if made:
        out["default_hooks"] = made


def _logger(theirs: Taking) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "LoggerHook"}
    theirs.drop("type", "the same")
    made["interval"] = theirs.take("interval", 10)
    theirs.tell("mapped", "interval", "" if "interval" in theirs else "10, which is theirs by default")
    theirs.drop("ignore_last", "the last values are logged at the end of training")
    theirs.drop("log_metric_by_epoch", "values are logged with epoch and iteration")
    theirs.drop("interval_exp_name", "the name of the run is logged at its start")
    theirs.end("has no counterpart; logs lie in the work dir")
    return made


def _checkpoint(theirs: Taking) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "CheckpointHook"}
    theirs.drop("type", "the same")
    interval = theirs.take("interval", -1)
    made["interval"] = interval if interval > 0 else None
    theirs.tell("mapped", "interval", "" if interval > 0 else "null, for none")
    theirs.keep("by_epoch", made)
    kept = theirs.take("max_keep_ckpts", -1)
    made["keep_last"] = kept if kept > 0 else None
    theirs.tell("mapped", "max_keep_ckpts", f"is keep_last: {made['keep_last'] or 'null'}")
    if theirs.take("save_last", True) is False:
        made["save_on"] = "stop"
    if "save_last" in theirs:
        theirs.tell("mapped", "save_last", "is save_on")
    _best(theirs, made)
    theirs.drop("save_optimizer", "a checkpoint has all of the run")
    theirs.drop("save_param_scheduler", "a checkpoint has all of the run")
    theirs.drop("save_begin", "0 is the default", off)
    theirs.drop("published_keys", "stratrun ckpt export writes the weights alone")
    for key in (*_SIDE_OPTIONS, "out_dir"):
        theirs.drop(key, "is off", off)
        theirs.leave(key, "checkpoints lie in work_dir, which may be a URL; checkpoint_cfg has its options")
    theirs.end("has no counterpart")
    return made


def _best(theirs: Taking, made: dict[str, Any]) -> None:
    best, rules = theirs.take("save_best"), theirs.take("rule")
    greater, less = theirs.take("greater_keys") or [], theirs.take("less_keys") or []
    if off(best):
        return
    names = [best] if isinstance(best, str) else list(best)
    if "auto" in names:
        theirs.tell("left for you", "save_best", "'auto' is not here: name the metric")
        return
    given = [rules] * len(names) if isinstance(rules, str | None) else list(rules) * len(names)
    told: dict[str, Any] = {}
    for name, rule in zip(names, given, strict=False):
        told[name] = rule or ("greater" if name in greater else "less" if name in less else None)
    made["save_best"] = told if all(told.values()) else names
    theirs.tell(
        "mapped", "save_best", "which of two is better is told by the name" if None in told.values() else ""
    )
    if any(told.values()) and not all(told.values()):
        theirs.tell("left for you", "rule", "give one for each: save_best: {name: greater|less}")


def custom_hooks(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    made = []
    for number, spec in enumerate(given if isinstance(given, list | tuple) else []):
        where = f"custom_hooks.{number}"
        if not isinstance(spec, Mapping) or not isinstance(spec.get("type"), str):
            report.add("left for you", where, source, "is no dict with a name as 'type'")
            continue
        theirs, name = Taking(spec, where, report), str(spec["type"]).rpartition(".")[2]
        theirs.take("type")
        if name not in _CUSTOM:
            made.append({**{key: theirs.take(key) for key in spec}, "type": name})
            note = f"register {name!r} in HOOKS; derive it from stratrun_ext.migrate.mmengine.Hook"
            theirs.tell("left for you", "type", note)
            continue
        hook = _CUSTOM[name](theirs)
        if hook is not None:
            theirs.keep("priority", hook)
            made.append(hook)
        theirs.end("has no counterpart")
    if made:
        out["custom_hooks"] = made


def _ema(theirs: Taking) -> dict[str, Any] | None:
    kind = theirs.take("ema_type", "ExponentialMovingAverage")
    if kind == "StochasticWeightAverage":
        theirs.tell("left for you", "ema_type", "is SWAHook with begin=, in epochs; see docs/averaging.md")
        return None
    made: dict[str, Any] = {"type": "EMAHook", "decay": round(1 - theirs.take("momentum", 0.0002), 12)}
    theirs.tell("mapped", "type")
    theirs.tell("mapped", "momentum", f"is decay: {made['decay']}")
    if kind in ("ExpMomentumEMA", "MomentumAnnealingEMA"):
        made["warmup"] = "exponential" if kind == "ExpMomentumEMA" else "inverse"
        made["gamma"] = theirs.take("gamma", 2000 if kind == "ExpMomentumEMA" else 100)
        theirs.tell("mapped", "ema_type", f"is warmup: {made['warmup']}")
    elif kind != "ExponentialMovingAverage":
        theirs.tell(
            "left for you", "ema_type", f"{kind!r} is not known here; an exponential average is taken"
        )
    theirs.keep("begin_iter", made, "begin", "is begin, in updates")
    theirs.drop("begin_epoch", "0 is the default", off)
    theirs.leave("begin_epoch", "give begin in updates: epochs times the updates of one")
    theirs.keep("interval", made, note="in updates")
    if theirs.take("update_buffers", False):
        made["buffers"] = "average"
        theirs.tell("mapped", "update_buffers", "is buffers: average")
    theirs.drop("evaluate_on_ema", "evaluations have the averages", lambda value: value is True)
    theirs.drop("evaluate_on_origin", "is off", off)
    theirs.drop("strict_load", "load_from has strict")
    return made


def _early_stopping(theirs: Taking) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "EarlyStoppingHook"}
    theirs.tell("mapped", "type")
    theirs.keep("monitor", made)
    rule = theirs.take("rule")
    if rule is not None:
        made["mode"] = {"greater": "max", "less": "min"}.get(rule, rule)
        theirs.tell("mapped", "rule", f"is mode: {made['mode']}")
    for key, default in (("min_delta", 0.1), ("patience", 5)):
        made[key] = theirs.take(key, default)
        theirs.tell("mapped", key, "" if key in theirs else f"{default}, which is theirs by default")
    theirs.keep("check_finite", made)
    theirs.keep("stopping_threshold", made)
    theirs.drop("strict", "a metric that is not there is an error")
    return made


def _empty_cache(theirs: Taking) -> dict[str, Any] | None:
    made: dict[str, Any] = {"type": "EmptyCacheHook"}
    if theirs.take("after_iter", False):
        made["every"] = 1
        theirs.tell("mapped", "after_iter", "is every: 1")
    for key in ("before_epoch", "after_epoch"):
        if key in theirs:
            theirs.take(key)
            theirs.tell("changed", key, "memory is given back around validation")
    theirs.tell("mapped", "type")
    return made


def _sync_buffers(theirs: Taking) -> dict[str, Any]:
    theirs.tell("mapped", "type")
    return {"type": "SyncBuffersHook", "how": "mean"}


def _none(note: str) -> Callable[[Taking], None]:
    def nothing(theirs: Taking) -> None:
        for key in theirs.source:
            theirs.take(key)
        theirs.tell("nothing to do", "type", note)

    return nothing


def _profiler(theirs: Taking) -> None:
    for key in theirs.source:
        theirs.take(key)
    theirs.tell("left for you", "type", "ProfilerHook has other arguments here; see docs/profiling.md")


_CUSTOM: dict[str, Callable[[Taking], dict[str, Any] | None]] = {
    "EMAHook": _ema,
    "EarlyStoppingHook": _early_stopping,
    "EmptyCacheHook": _empty_cache,
    "SyncBuffersHook": _sync_buffers,
    "ProfilerHook": _profiler,
    "DistSamplerSeedHook": _none(_BY_THEMSELVES["sampler_seed"]),
    "IterTimerHook": _none(_BY_THEMSELVES["timer"]),
    "RuntimeInfoHook": _none(_BY_THEMSELVES["runtime_info"]),
    "ParamSchedulerHook": _none(_BY_THEMSELVES["param_scheduler"]),
}
