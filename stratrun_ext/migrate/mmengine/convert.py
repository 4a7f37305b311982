"""A config of MMEngine as one of ours, with a report."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stratrun.config.formats.yaml import write
from stratrun.config.placed import PlacedDict
from stratrun_ext.migrate.mmengine import data, hooks, surroundings, training
from stratrun_ext.migrate.mmengine.expressions import Unknown
from stratrun_ext.migrate.mmengine.reading import read
from stratrun_ext.migrate.mmengine.schedules import schedules
from stratrun_ext.migrate.mmengine.surroundings import Convert, left, nothing, same
from stratrun_ext.migrate.report import Report, Row

_JOBS = ("train", "val", "test")


def _schedules(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    made = schedules(given, "param_scheduler", report, source) if given else []
    if made:
        out["param_scheduler"] = made


def _told_with_model(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    if "model" not in source:
        report.add("left for you", "data_preprocessor", source, "is model.data_preprocessor here")


def _of_jobs(convert: Any, ending: str) -> dict[str, Convert]:
    def one(name: str) -> Convert:
        def converted(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
            convert(given, name, report, out, source)

        return converted

    return {
        f"{job}_{ending}": one(f"{job}_{ending}") for job in _JOBS if (job, ending) != ("train", "evaluator")
    }


_KEYS: dict[str, Convert] = {
    "model": data.model,
    "data_preprocessor": _told_with_model,
    **_of_jobs(data.loader, "dataloader"),
    **_of_jobs(data.evaluator, "evaluator"),
    **_of_jobs(training.loop, "cfg"),
    "optim_wrapper": training.wrapper,
    "param_scheduler": _schedules,
    "auto_scale_lr": training.auto_scale,
    "default_hooks": hooks.default_hooks,
    "custom_hooks": hooks.custom_hooks,
    "randomness": surroundings.randomness,
    "env_cfg": surroundings.environment,
    "visualizer": surroundings.visualizer,
    "vis_backends": nothing("vis_backends", "is used in visualizer"),
    "load_from": surroundings.load_from,
    "resume": surroundings.resume,
    "custom_imports": surroundings.imports,
    "work_dir": same("work_dir"),
    "experiment_name": same("experiment_name", "name"),
    "compile": left("compile", "is compile: true, or a dict with other keys: docs/compile.md"),
    "launcher": nothing("launcher", "torchrun and SLURM are found by themselves"),
    "log_level": nothing("log_level", "what is told does not depend on a level"),
    "log_processor": nothing("log_processor", "means are over the iterations since the last log point"),
    "default_scope": nothing("default_scope", "there is one registry of each kind"),
    "runner_type": left("runner_type", "register your class in RUNNERS, derived from stratrun.Runner"),
    "model_wrapper_cfg": left("model_wrapper_cfg", "is strategy: {type: ddp, ...}; see docs/strategies.md"),
    "strategy": left("strategy", "is strategy: a name or a dict; see docs/strategies.md"),
    "tta_model": left("tta_model", "has no counterpart by name; see docs/prediction.md"),
    "tta_pipeline": left("tta_pipeline", "has no counterpart by name; see docs/prediction.md"),
}
"""Where a setting is dealt with. The order is that of the file that is written."""


def convert(path: str | Path) -> tuple[str, Report]:
    """The text of our config, and what became of each setting.

    Raises:
        ConfigError: the file cannot be read as a config.
    """
    found, report = read(path), Report()
    out: dict[str, Any] = {}
    for place, text in found.passed_over:
        report.rows.append(_passed_over(place, text))
    tree = _known(found.tree, "", report)
    tree = _without_scopes(tree, "", report)
    for key, one in _KEYS.items():
        if key in tree:
            try:
                one(tree[key], report, out, tree)
            except (AttributeError, TypeError, ValueError) as error:
                report.add("left for you", key, tree, f"has a form that is not known here ({error})")
    if "default_hooks" not in tree:
        note = (
            "is not there: by itself theirs logs each 10 iterations and keeps all checkpoints, ours 50 and 3"
        )
        report.add("changed", "default_hooks", None, note)
    for key in tree:
        if key not in _KEYS:
            used = key in found.used
            note = (
                "a name for values that are written out where it is used"
                if used
                else "is no setting of a run"
            )
            report.add("nothing to do" if used else "left for you", key, tree, note)
    return f"# From {Path(path).name}, a config of MMEngine.\n{write(_plain(out))}", report


def _passed_over(place: str, text: str) -> Row:
    return Row(
        "left for you", text, place, "is code, which is not run: write down what it does to the settings"
    )


def _known(value: Any, where: str, report: Report) -> Any:
    """The same without what only running the config would give."""
    if not isinstance(value, PlacedDict):
        return value
    made = PlacedDict()
    made.places.update(value.places)
    for key, one in value.items():
        at = f"{where}.{key}" if where else str(key)
        unknown = _unknown_in(one)
        if unknown is None:
            made[key] = _known(one, at, report)
        else:
            report.add("left for you", at, value, f"is worked out by code: {_short(unknown.text)}")
    return made


def _unknown_in(value: Any) -> Unknown | None:
    """What is unknown in a value whose key is then left out; dicts leave out keys of their own."""
    if isinstance(value, list | tuple):
        found = (_unknown_in(list(one.values()) if isinstance(one, Mapping) else one) for one in value)
        return next((one for one in found if one is not None), None)
    return value if isinstance(value, Unknown) else None


def _without_scopes(value: Any, where: str, report: Report) -> Any:
    """The same with ``mmdet.ResNet`` as ``ResNet``, of which there is one here."""
    walk = partial(_without_scopes, report=report)
    if isinstance(value, list | tuple):
        return [walk(one, f"{where}.{i}") for i, one in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    made = PlacedDict()
    made.places.update(getattr(value, "places", {}))
    for key, one in value.items():
        at = f"{where}.{key}" if where else str(key)
        made[key] = walk(one, at)
        if key == "type" and isinstance(one, str) and "." in one:
            made[key] = one.rpartition(".")[2]
            report.add("changed", at, value, f"{one!r} is {made[key]!r}: names have no scope here")
    return made


def _plain(value: Any) -> Any:
    """The same as dicts and lists alone, which is what can be written."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
