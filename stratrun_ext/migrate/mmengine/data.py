"""Their data loaders and metrics in our words."""

from collections.abc import Mapping
from typing import Any

from stratrun_ext.migrate.mmengine.taking import Taking, off
from stratrun_ext.migrate.report import Report

_SAME = ("batch_size", "num_workers", "persistent_workers", "drop_last", "pin_memory", "prefetch_factor")
_PSEUDO, _DEFAULT = "pseudo_collate", "default_collate"


def loader(given: Any, where: str, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    """``train_dataloader`` and its like."""
    if given is None:
        report.add("nothing to do", where, source, "no such job")
        return
    if not isinstance(given, Mapping):
        report.add("left for you", where, source, "is no dict; several loaders: docs/several_loaders.md")
        return
    theirs, made = Taking(given, where, report), {}
    made["dataset"] = theirs.take("dataset")
    theirs.tell("left for you", "dataset", f"register {_named(made['dataset'])} in DATASETS")
    for key in _SAME:
        theirs.keep(key, made)
    _sampler(theirs, made, train=where.startswith("train"))
    _collate(theirs, made)
    theirs.drop("batch_sampler", "is off", off)
    theirs.leave("batch_sampler", "register it in SAMPLERS, and give it as batch_sampler beside the dataset")
    theirs.leave("num_batch_per_epoch", "dev_cfg.limit_batches reads fewer batches")
    theirs.leave("worker_init_fn", "workers are seeded by themselves; name a function only from Python")
    theirs.end("has no counterpart")
    out[where] = made


def _sampler(theirs: Taking, made: dict[str, Any], *, train: bool) -> None:
    sampler = theirs.take("sampler")
    if sampler is None:
        return
    name = str(sampler.get("type")).rpartition(".")[2] if isinstance(sampler, Mapping) else ""
    if name not in ("DefaultSampler", "InfiniteSampler"):
        made["sampler"] = sampler
        theirs.tell("left for you", "sampler", f"register {_named(sampler)} in SAMPLERS")
        return
    made["shuffle"] = bool(sampler.get("shuffle", True))
    what = "the order follows from seed and epoch, and is another than theirs"
    if not made["shuffle"]:
        what = "on several ranks nothing is padded" if not train else "the order of the data set"
    theirs.tell(
        "changed" if made["shuffle"] else "mapped", "sampler", f"is shuffle: {made['shuffle']}; {what}"
    )


def _collate(theirs: Taking, made: dict[str, Any]) -> None:
    given = theirs.take("collate_fn", {"type": _PSEUDO})
    name = str(given.get("type")).rpartition(".")[2] if isinstance(given, Mapping) else str(given)
    if name == _DEFAULT:
        theirs.tell("nothing to do", "collate_fn", "is what loaders do by themselves")
        return
    made["collate_fn"] = given if isinstance(given, Mapping) else name
    if name == _PSEUDO:
        made["collate_fn"] = {"type": _PSEUDO}
        note = "" if "collate_fn" in theirs else "pseudo_collate, which is theirs by default; "
        theirs.tell("changed", "collate_fn", f"{note}needs --import stratrun_ext.migrate.mmengine.collate")
    else:
        theirs.tell("left for you", "collate_fn", f"register {name!r} in COLLATES")


def evaluator(given: Any, where: str, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    """``val_evaluator`` or ``test_evaluator``."""
    if off(given):
        report.add("nothing to do", where, source, "no such job")
        return
    out[where] = given
    listed = given if isinstance(given, list | tuple) else [given]
    names = ", ".join(_named(one) for one in listed)
    note = "derive it from stratrun_ext.migrate.mmengine.BaseMetric"
    if any(isinstance(one, Mapping) and one.get("type") == "Accuracy" for one in listed):
        note += "; the Accuracy that is here gives shares of 1, not of 100"
    report.add("left for you", where, source, f"register {names} in METRICS; {note}")


def model(given: Any, report: Report, out: dict[str, Any], source: Mapping[str, Any]) -> None:
    out["model"] = given
    note = "derive it from stratrun_ext.migrate.mmengine.BaseModel"
    report.add("left for you", "model", source, f"register {_named(given)} in MODELS; {note}")
    preprocessor = source.get("data_preprocessor")
    if preprocessor is None or not isinstance(given, Mapping):
        return
    if "data_preprocessor" not in given:
        out["model"] = {**given, "data_preprocessor": preprocessor}
    report.add("mapped", "data_preprocessor", source, "is model.data_preprocessor")


def _named(spec: Any) -> str:
    return repr(spec["type"]) if isinstance(spec, Mapping) and "type" in spec else "it"
