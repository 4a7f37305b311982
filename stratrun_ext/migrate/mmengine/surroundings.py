"""What their configs say of the run as a whole, in our words."""

from collections.abc import Callable, Mapping
from typing import Any

from stratrun_ext.migrate.mmengine.taking import Taking, off
from stratrun_ext.migrate.report import Outcome, Report

Convert = Callable[[Any, Report, dict[str, Any], Mapping[str, Any]], None]
_LOGGERS = {"TensorboardVisBackend": "tensorboard", "WandbVisBackend": "wandb", "MLflowVisBackend": "mlflow"}


def randomness(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    if not isinstance(given, Mapping):
        report.add("nothing to do", "randomness", source)
        return
    theirs = Taking(given, "randomness", report)
    made: dict[str, Any] = {}
    theirs.drop("seed", "without one, one is drawn and told", lambda seed: seed is None)
    theirs.keep("seed", made)
    theirs.keep("deterministic", made)
    theirs.drop("diff_rank_seed", "what ranks draw for samples follows from the samples")
    theirs.end("has no counterpart")
    if made:
        out["randomness"] = made


def environment(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    if not isinstance(given, Mapping):
        report.add("nothing to do", "env_cfg", source)
        return
    theirs = Taking(given, "env_cfg", report)
    made: dict[str, Any] = {}
    theirs.keep("cudnn_benchmark", made)
    workers = theirs.take("mp_cfg")
    if isinstance(workers, Mapping):
        inner = Taking(workers, "env_cfg.mp_cfg", report)
        inner.keep("mp_start_method", made)
        inner.drop("opencv_num_threads", "workers have one thread each")
        inner.end("has no counterpart")
    ranks = theirs.take("dist_cfg")
    if isinstance(ranks, Mapping):
        inner = Taking(ranks, "env_cfg.dist_cfg", report)
        inner.drop("backend", "nccl is what GPUs take by themselves", lambda name: name == "nccl")
        inner.keep("backend", made)
        inner.keep("timeout", made)
        inner.end("has no counterpart")
    theirs.drop("resource_limit", "limits of the process are those of the shell")
    theirs.end("has no counterpart")
    if made:
        out["env_cfg"] = made


def visualizer(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    backends = given.get("vis_backends") if isinstance(given, Mapping) else None
    names = []
    for spec in backends if isinstance(backends, list | tuple) else []:
        kind = str(spec.get("type") if isinstance(spec, Mapping) else spec).rpartition(".")[2]
        if kind in _LOGGERS:
            names.append(_LOGGERS[kind])
            options = isinstance(spec, Mapping) and len(spec) > 1
            told: Outcome = "left for you" if options else "mapped"
            note = "; its options have other names: docs/tracking.md" if options else ""
            report.add(told, "visualizer.vis_backends", given, f"{kind} is logger {names[-1]!r}{note}")
        elif kind == "LocalVisBackend":
            report.add("nothing to do", "visualizer.vis_backends", given, f"{kind}: files are kept anyway")
        else:
            report.add("left for you", "visualizer.vis_backends", given, f"no logger here is {kind}")
    if names:
        out["loggers"] = ["console", "jsonl", "csv", "files", *names]
    elif not backends:
        report.add("nothing to do", "visualizer", source)


def load_from(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    if off(given):
        report.add("nothing to do", "load_from", source, "is off")
        return
    out["load_from"] = given
    note = f"convert it by stratrun migrate mmengine {given}, and give the file that this writes"
    report.add("left for you", "load_from", source, note)


def resume(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    if off(given):
        report.add("nothing to do", "resume", source, "is off")
    elif off(source.get("load_from")):
        out["resume"] = "auto"
        report.add("mapped", "resume", source, "is resume: auto")
    else:
        note = "a run of theirs cannot be gone on with to the bit; its weights and optimizer can be loaded"
        report.add("left for you", "resume", source, note)


def imports(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    names = given.get("imports", []) if isinstance(given, Mapping) else []
    listed = [names] if isinstance(names, str) else list(names)
    words = " ".join(f"--import {name}" for name in listed)
    report.add("left for you", "custom_imports", source, f"is told on the command line: {words}")


def nothing(name: str, note: str) -> Convert:
    def told(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
        report.add("nothing to do", name, source, note)

    return told


def left(name: str, note: str) -> Convert:
    def told(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
        if off(given):
            report.add("nothing to do", name, source, "is off")
        else:
            report.add("left for you", name, source, note)

    return told


def same(name: str, ours: str | None = None) -> Convert:
    def kept(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
        out[ours or name] = given
        report.add("mapped", name, source, f"is {ours}" if ours else "")

    return kept
